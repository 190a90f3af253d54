"""A search among students cut out of the study's own teacher, on the real digits."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import tiny
import torch
import yaml
from fitted_heads import digits, fit_head
from safetensors.torch import save_file

from kdnas.cli.main import main
from kdnas.errors import ConfigError, RunFolderError
from kdnas.record.lock import read_lock
from kdnas.report.cut_figure import cut_figure
from kdnas.session import search_study
from kdnas.study.loading import load_study

STUDY = (
    tiny.STUDY.replace("stem_width: 8, stage1.depth: 1", "stem_width: 16, stage1.depth: 3")
    .replace("space: space.yaml", "space: {derive: teacher, round_to: 2, inner: 1}")
    .replace("seeds: 2, epochs: 5", "seeds: 1, epochs: 2")
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    (folder / "study.yaml").write_text(STUDY.replace("formats: [safetensors, student_json]", "formats: []"))
    return folder


def searched(study, *settings, run="run"):
    return search_study(load_study(study, settings), study / run, data_root=study, observe=lambda event: None)


@pytest.fixture(scope="module")
def run(study):
    return searched(study)


def test_the_space_is_read_off_the_teacher_and_recorded(run, study):
    space = read_lock(study / "run").space
    assert (space.name, space.family) == ("derived", "derived")
    assert {choice.name: choice.values for choice in space.choices} == {
        "stage1.depth": (1, 2, 3),
        "stage1.width": (4, 8, 12, 16),
    }
    assert space.options == {"round_to": 2, "inner": 1}
    assert run.lock.fingerprints["calibration"]


def test_its_students_are_scored_and_retrained(run):
    assert [trial.state for trial in run.trials] == ["complete"] * 4
    assert all(trial.arch.family == "derived" for trial in run.trials)
    prices = {trial.arch.arch_id: trial.values["macs"] for trial in run.trials}
    assert len(set(prices.values())) > 1
    assert max(prices.values()) <= run.lock.teacher.values["macs"]
    assert any(trial.repeats for trial in run.trials)
    assert all(trial.fidelity.start == "inherited" for trial in run.trials)


def test_its_students_are_measured(run, study, capsys):
    root, target = ["--data-root", str(study)], ["--target", "cpu", "--repeats", "5", "--max-drift", "100"]
    capsys.readouterr()
    assert main(["measure", str(run.folder), "--pick", "best", *root, *target, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["targets"][0]["students"]
    assert found["latency_ms"]["value"] > 0
    trial = next(trial for trial in run.trials if trial.arch.arch_id == found["student"])
    assert found["macs"] == trial.values["macs"]


def test_an_export_of_one_cannot_be_measured_without_its_teacher(run, study, tmp_path, capsys):
    out = tmp_path / "export"
    formats = ["--format", "student_json", "--format", "onnx"]
    assert main(["export", str(run.folder), "--out", str(out), *formats, "--data-root", str(study)]) == 0
    for exported in (out, out / "student.onnx"):
        capsys.readouterr()
        assert main(["measure", str(exported), "--target", "onnxruntime"]) == 2
        printed = " ".join(capsys.readouterr().err.split())
        assert "is cut out of a teacher, which an export does not hold (allowed: its run folder)" in printed
        assert "measuring" not in printed


def test_a_student_made_by_hand_is_scored_first(study):
    mine = study / "mine.yaml"
    mine.write_text("{stage1.depth: 2, stage1.width: 12}")
    run = search_study(
        load_study(study, ["budget.trials=1", "final.max_students=1"]),
        study / "by_hand",
        data_root=study,
        observe=lambda event: None,
        queue=[mine],
    )
    assert {name: run.trials[0].arch.choices[name] for name in ("stage1.depth", "stage1.width")} == {
        "stage1.depth": 2,
        "stage1.width": 12,
    }
    mine.write_text("{stage1.depth: 2, stage1.width: 13}")
    with pytest.raises(ConfigError, match=r"mine.yaml: stage1.width: has no value 13"):
        search_study(
            load_study(study, ["budget.trials=2"]),
            study / "by_hand",
            data_root=study,
            observe=lambda event: None,
            queue=[mine],
        )


def test_what_matters_in_the_teacher_is_kept_in_the_run_folder_and_read_when_it_goes_on(run, study):
    kept = json.loads((study / "run" / "family.json").read_text())
    assert kept["teacher"] == run.lock.fingerprints["teacher"]
    assert len(kept["scores"]["stem.0.channels"]) == 16
    before = (study / "run" / "family.json").read_bytes()
    again = searched(study, "budget.trials=5")
    assert len(again.trials) == 5
    assert (study / "run" / "family.json").read_bytes() == before


def test_the_report_draws_what_matters_in_the_teacher(run, study):
    figure = cut_figure(run)
    rows = dict(zip(figure.drawing.data[0].y, figure.drawing.data[0].z, strict=True))
    assert set(rows) == set(json.loads((study / "run" / "family.json").read_text())["scores"])
    assert all(list(row) == sorted(row) and row[-1] == pytest.approx(1.0) for row in rows.values())
    assert "What matters in the teacher" in (study / "run" / "report.html").read_text()


def test_another_space_of_the_same_teacher_is_another_study(run, study):
    with pytest.raises(RunFolderError, match="started with another study") as caught:
        searched(study, "space.width=[0.5, 1]")
    assert "stage1.width" in str(caught.value)


def test_validate_open_says_how_many_students_there_are(study, capsys):
    assert main(["validate", str(study), "--data-root", str(study)]) == 0
    assert "students cut out of the teacher, which --open reads" in capsys.readouterr().out
    assert main(["validate", str(study), "--data-root", str(study), "--open"]) == 0
    assert "cut out of the teacher, 2 choices, 12 distinct settings" in capsys.readouterr().out


def test_exports_that_its_student_has_not_are_told_at_the_end(run, study, capsys):
    command = ["search", str(study / "run"), "--data-root", str(study)]
    searched(study, "export.formats=[student_json, student_py]")
    (study / "run" / "export" / "student.json").unlink()
    capsys.readouterr()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"wrote {study / 'run' / 'export' / 'student.json'}" in printed
    assert printed.splitlines()[-1].startswith("skipped student_py: how the teacher's network is made is not known")
    with pytest.raises(ConfigError, match=r"export: student \w{12} has no student_py: how the teacher's"):
        searched(study, "export.formats=[student_py]")


def test_its_best_student_is_trained_whole_and_again_by_its_train_yaml(run, study, tmp_path, capsys):
    assert main(["train", str(study / "run"), "--out", str(tmp_path / "whole"), "--data-root", str(study)]) == 0
    printed = capsys.readouterr()
    assert "skipped student_py: how the teacher's network is made is not known" in printed.out + printed.err
    file = (tmp_path / "whole" / "train.yaml").read_text()
    assert "family_options:\n  round_to: 2\n  inner: 1\n" in file
    assert "start: inherited" in file


SHARED = (
    "start=supernet",
    "supernet={epochs: 2, shrinking: {policy: sandwich, subnets: 3}, recalibration_samples: 64}",
)
VIT = """\
import timm


def build():
    return timm.models.VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=24, depth=3, num_heads=3, mlp_ratio=2
    )
"""


def test_students_share_the_weights_of_the_teacher_trained_for_all_of_them(study):
    run = searched(study, *SHARED, "rungs=[{start: supernet, epochs: 0}, {start: supernet, epochs: 3}]", run="shared")
    assert run.lock.supernet.inherited == 1.0
    cut, trained = (
        [trial.values["accuracy"] for trial in run.trials if trial.fidelity.epochs == epochs] for epochs in (0, 3)
    )
    assert trained
    assert min(cut) > 0.15  # chance is 0.1
    assert min(trained) > 0.5
    assert {trial.fidelity.start for trial in run.trials} == {"supernet"}
    assert run.config.final_fidelity.start == "inherited"


def test_a_students_training_plan_shrinks_the_teacher_to_it(study, run, capsys):
    folder = study / "run"
    smallest = min(run.trials, key=lambda trial: trial.values["macs"]).arch.arch_id
    asked = ["schedule", str(folder), "--pick", smallest, "--route", "shrink", "--epochs", "4"]
    if not any(trial.repeats for trial in run.trials if trial.arch.arch_id == smallest):
        smallest = next(trial.arch.arch_id for trial in run.trials if trial.repeats)
        asked[3] = smallest
    assert main([*asked, "--data-root", str(study)]) == 0
    plan = (folder / "plan.yaml").read_text()
    assert "init: inherited" in plan
    following = ["train", str(folder), "--plan", str(folder / "plan.yaml"), "--out", str(study / "planned")]
    assert main([*following, "--data-root", str(study), "--format", "safetensors"]) == 0
    assert f"student {smallest}: validation accuracy" in capsys.readouterr().out


def test_a_plan_may_cut_a_student_out_of_a_larger_one_that_it_trains_first(study, run, capsys):
    folder, out = study / "run", study / "nested.yaml"
    small, large = next(
        (one.arch, other.arch)
        for one in run.trials
        for other in run.trials
        if one.repeats
        and one.arch != other.arch
        and all(size <= other.arch.choices[name] for name, size in one.arch.choices.items())
    )
    macs = {trial.arch: trial.values["macs"] for trial in run.trials}
    asked = ["schedule", str(folder), "--pick", small.arch_id, "--route", "direct", "--epochs", "40", "--out", str(out)]
    assert main([*asked, "--data-root", str(study)]) == 0
    plan = yaml.safe_load(out.read_text())
    (last,) = plan["steps"]
    first = {**last, "name": "larger", "epochs": 1, "share": macs[large] / macs[small] / 40}
    first["arch"] = {"family": "derived", "choices": dict(large.choices)}
    last |= {"epochs": 2, "share": 2 / 40, "init": "larger"}
    plan["steps"] = [first, last]
    out.write_text(yaml.safe_dump(plan, sort_keys=False))
    following = ["train", str(folder), "--plan", str(out), "--out", str(study / "nested"), "--format", "safetensors"]
    assert main([*following, "--data-root", str(study)]) == 0
    assert f"student {small.arch_id}: validation accuracy" in capsys.readouterr().out
    plan["steps"][0]["arch"], last["arch"] = last["arch"], first["arch"]
    last["name"] = "student"
    out.write_text(yaml.safe_dump(plan, sort_keys=False))
    assert main([*following, "--data-root", str(study)]) == 2
    assert f"larger gives {small.arch_id}, this one trains {large.arch_id}" in capsys.readouterr().err


NESTED = ("final.start=nested", "final.max_students=4", "final.seeds=1")


@pytest.fixture(scope="module")
def nested(study, run):
    shutil.copytree(study / "run", study / "nest")
    return searched(study, *NESTED, run="nest")


def test_finalists_are_cut_out_of_the_nearest_larger_one_that_holds_them(nested, study):
    earned = {trial.number: trial for trial in nested.trials if trial.repeats}
    assert {repeat.fidelity.start for trial in earned.values() for repeat in trial.repeats} == {"nested"}

    def holds(large, small):
        pairs = [(small.arch.choices[name], large.arch.choices[name]) for name in small.arch.choices]
        return small.arch != large.arch and all(ours <= theirs for ours, theirs in pairs)

    origins = []
    for trial in earned.values():
        holding = [other for other in earned.values() if holds(other, trial)]
        nearest = min(holding, key=lambda other: other.values["macs"], default=None)
        origins.append(None if nearest is None else nearest.number)
        assert [repeat.cut_from for repeat in trial.repeats] == [origins[-1]]
    assert any(origin is not None for origin in origins)
    again = searched(study, *NESTED, run="nest")
    assert [trial.repeats for trial in again.trials] == [trial.repeats for trial in nested.trials]


def test_a_student_is_trained_from_a_larger_trained_one_that_is_named(nested, study, capsys):
    child = next(trial for trial in nested.trials if trial.repeats and trial.repeats[0].cut_from is not None)
    parent = next(trial for trial in nested.trials if trial.number == child.repeats[0].cut_from)
    small, large = child.arch.arch_id, parent.arch.arch_id
    asked = ["train", str(study / "nest"), "--data-root", str(study), "--epochs", "1", "--format", "safetensors"]
    card = ["--format", "model_card"]
    assert main([*asked, *card, "--pick", small, "--from", large]) == 0
    folder = study / "nest" / "training" / f"{small}-from-{large}"
    assert "from the weights of the next larger student" in (folder / "MODEL_CARD.md").read_text()
    lock = yaml.safe_load((folder / "training.lock.yaml").read_text())
    assert lock["cut_from"] == {"arch_id": large, "sha256": parent.repeats[0].sha256}
    assert main([*asked, "--pick", large]) == 0
    again = ["--from", str(study / "nest" / "training" / large), "--out", str(study / "on")]
    assert main([*asked, "--pick", small, *again]) == 0
    capsys.readouterr()
    assert main([*asked, "--pick", large, "--from", small]) == 2
    assert f"--from: student {large} is no part of {small}" in capsys.readouterr().err
    assert main([*asked, "--pick", small, "--from", large, "--plan", "plan.yaml"]) == 2
    assert main(["train", str(folder / "training.lock.yaml"), "--from", large]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_only_students_that_are_cut_out_of_their_teacher_are_nested(tmp_path):
    folder = tiny.write(tmp_path)
    with pytest.raises(ConfigError, match="final.start: students of resnet are not cut out of one another"):
        load_study(folder, ["final.start=nested"])
    with pytest.raises(ConfigError, match="start"):
        load_study(folder, ["start=nested"])


def test_a_vision_transformer_of_the_users_is_the_supernet_of_its_students(tmp_path):
    (tmp_path / "vit.py").write_text(VIT)
    made: dict[str, Any] = {}
    exec(VIT, made)
    torch.manual_seed(0)
    images, labels = digits(8, channels=1)
    save_file(fit_head(made["build"](), "head", [images], labels).state_dict(), tmp_path / "vit.safetensors")
    text = STUDY.replace("round_to: 2, inner: 1", "width: 1").replace(
        "formats: [safetensors, student_json]", "formats: []"
    )
    head, _, rest = text.partition("teacher:\n")
    teacher = '{type: module, factory: "vit.py:build", weights: vit.safetensors, mean: [77.8], std: [95.9]}'
    text = f"{head}teacher: {teacher}\n{rest[rest.index('space:') :]}"
    (tmp_path / "study.yaml").write_text(text)
    run = searched(
        tmp_path, *SHARED, "budget.trials=3", "final.control=false", "export.formats=[]", "training.learning_rate=0.001"
    )
    assert {choice.name for choice in run.lock.space.choices} == {"depth", "inner", "heads"}
    assert [trial.state for trial in run.trials] == ["complete"] * 3
    assert any(trial.repeats for trial in run.trials)
