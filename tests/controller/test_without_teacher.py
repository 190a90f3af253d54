"""A study without a teacher: students that learn from labels, from each other or from their own past."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import tiny
import yaml

from kdnas.cli.main import main
from kdnas.errors import ConfigError
from kdnas.record.storage import load_run
from kdnas.study.loading import load_study
from kdnas.workshop.evaluators import EvaluatorContext, open_evaluator
from kdnas.workshop.jobs import final_job


def without_teacher(parent, losses):
    folder = tiny.write(parent)
    stated = re.sub(r"^teacher:\n(?:  .*\n)+", "", (folder / "study.yaml").read_text(), flags=re.MULTILINE)
    (folder / "study.yaml").write_text(f"{stated}distillation: {{losses: {losses}}}\n")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    study = without_teacher(tmp_path_factory.mktemp("mutual"), "[{type: kd, of: peers}]")
    folder = study.parent / "run"
    settings = ("budget.trials=2", "training.epochs=1", "final.epochs=1", "final.max_students=1", "final.seeds=1")
    own = [part for text in settings for part in ("--set", text)]
    assert main(["search", str(study), "--out", str(folder), *own, "--set", "export.formats=[model_card]"]) == 0
    return load_run(folder)


def test_it_is_searched_and_reported(run):
    assert run.teacher is None
    assert run.teachers == {}
    assert "teacher" not in run.lock.fingerprints
    assert [trial.state for trial in run.trials] == ["complete", "complete"]
    assert run.config.distillation.task_weight == 1.0
    assert "trained without a teacher" in (run.folder / "report.html").read_text()
    assert "teacher" not in (run.folder / "trials.csv").read_text().splitlines()[0]
    assert "the teacher’s (s)" not in (run.folder / "report.html").read_text()
    assert "None recorded" in (run.folder / "export/MODEL_CARD.md").read_text()


def test_its_student_is_trained_in_full_and_again_from_its_file(run, tmp_path, capsys):
    command = ["train", str(run.folder), "--pick", "best", "--epochs", "1", "--out", str(tmp_path / "full")]
    assert main(command) == 0
    assert main(["train", str(tmp_path / "full/train.yaml"), "--out", str(tmp_path / "again")]) == 0
    first, again = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("full", "again"))
    assert first["score"] == again["score"]


def test_the_front_learns_together(tmp_path, capsys):
    """Each finalist is what it is when its peers are stated by hand, and the file of its training states them."""
    study, out = without_teacher(tmp_path, "[]"), tmp_path / "run"
    brief = ["budget.trials=6", "training.epochs=1", "final.epochs=1", "final.seeds=1", "final.control=false"]
    learnt = "final.distillation={losses: [{type: kd, of: peers}], peers: %s}"
    more = [learnt % "front", "final.max_students=3", "export.formats=[train_yaml]"]
    assert (
        main(["search", str(study), "--out", str(out), *(part for text in brief + more for part in ("--set", text))])
        == 0
    )
    front = load_run(out).retrained
    assert len(front) > 1
    written = (out / "export/train.yaml").read_text()
    exported = yaml.safe_load(written)
    peers = exported["distillation"]["peers"]
    (own,) = [trial for trial in front if trial.arch.choices == exported["arch"]["choices"]]
    others = {trial.arch.arch_id: dict(trial.arch.choices) for trial in front if trial != own}
    assert [peer["choices"] for peer in peers] == [others[name] for name in sorted(others)]
    config = load_study(study, [*brief, learnt % json.dumps(peers)]).config
    evaluator = open_evaluator(EvaluatorContext(
        config, load_run(out).lock.space, out, study, Path(os.environ["KDNAS_CACHE"]), "cpu"))  # fmt: skip
    by_hand = evaluator(dataclasses.replace(final_job(config, own.number, own.arch, {}, 0), checkpoint=None))
    assert by_hand.values["accuracy"] == own.repeats[0].score
    capsys.readouterr()
    assert main(["compare", str(out), "--vary", "training.learning_rate=0.1,0.01", "--seeds", "1", "--dry-run"]) == 0
    exported["distillation"]["peers"] = "front"
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(exported))
    assert main(["train", str(tmp_path / "train.yaml"), "--out", str(tmp_path / "full")]) == 2
    assert "one student has no front" in capsys.readouterr().err


def test_what_learns_of_a_teacher_cannot_be_compared(run, capsys):
    recipes = ["--vary", "distillation.losses=ce,hard", "--epochs", "1", "--seeds", "1"]
    assert main(["compare", str(run.folder), "--pick", "best", *recipes]) == 2
    assert "there is no teacher that hard could learn from" in capsys.readouterr().err


def test_an_audit_of_a_loss_that_learns_of_a_teacher_is_refused(run, capsys):
    assert main(["audit", str(run.folder), "--loss", "hard", "--dry-run"]) == 2
    assert "there is no teacher that hard could learn from" in capsys.readouterr().err


@pytest.mark.parametrize("losses", ["[]", "[{type: kd, weight: 0}]"])
def test_labels_alone_count_in_full(tmp_path, losses):
    assert load_study(without_teacher(tmp_path, losses)).config.distillation.task_weight == 1.0


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            "distillation.losses=[{type: kd}]",
            r"distillation\.losses\.0: kd learns of a teacher, and the study has none",
        ),
        ("distillation.losses=[{type: kd, of: other}]", r"distillation\.losses\.0: kd learns of a teacher"),
        ("start=inherited", "start: the study has no teacher: no weights can be inherited"),
        ("start=supernet", "supernet: the networks of a supernet learn of a teacher, and the study has none"),
        ("training.proxy=herding", r"training\.proxy: herding chooses samples by the features of a teacher"),
        ("export.pick=teacher-1", r"export\.pick: teacher-1 speaks of the teacher, and the study has none"),
        ("export.pick=macs<=5%", r"export\.pick: macs<=5% speaks of the teacher"),
        ("distillation.task_weight=0", "task_weight is 0 and there are no losses: there is nothing to learn"),
        ("distillation.ensemble={}", r"distillation\.ensemble: is stated, and no loss reads what it is about"),
        ("distillation.teacher_top_k=3", r"distillation\.teacher_top_k: is stated, and no loss reads"),
        ("constraints=[macs<=50%]", "macs<=50% speaks of the teacher, and the study has none"),
    ],
)
def test_what_asks_for_a_teacher_is_refused(tmp_path, setting, problem):
    with pytest.raises(ConfigError, match=problem):
        load_study(without_teacher(tmp_path, "[]"), [setting])


def test_a_study_that_says_nothing_of_losses_needs_one(tmp_path):
    folder = without_teacher(tmp_path, "[]")
    text = (folder / "study.yaml").read_text()
    (folder / "study.yaml").write_text(text.replace("distillation: {losses: []}\n", ""))
    with pytest.raises(ConfigError, match="teacher: is what students learn of unless losses say otherwise"):
        load_study(folder)
    derived = text.replace("space: space.yaml", "space: {derive: teacher}")
    (folder / "study.yaml").write_text(derived)
    with pytest.raises(ConfigError, match="teacher: is what students are cut out of, and it is not stated"):
        load_study(folder)
