"""Loading a study: every problem at once with its line, overrides, and the checks across sections."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny
import yaml

from kdnas.errors import ConfigError, KdnasError
from kdnas.students import STUDENTS
from kdnas.study.loading import load_study

GOOD = """\
name: small
data: {type: digits, validation_fraction: 0.25}
teacher:
  type: student
  family: resnet
  choices: {stem_width: 16, stage1.depth: 1, stage1.width: 16, stage1.bottleneck: plain, stage1.skip: identity}
space: digits_resnet
constraints: [macs<=1M]
training: {epochs: 3}
distillation:
  losses:
    - {type: kd, weight: 0.9, temperature: 4}
sampler: tpe
tune:
  training.learning_rate: {low: 0.01, high: 0.3, log: true}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "study.yaml").write_text(GOOD)
    return folder


def problems_of(folder: Path, text: str, *overrides: str) -> list[str]:
    (folder / "study.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_study(folder, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_a_sound_study_loads_from_its_folder_and_from_its_file(study):
    loaded = load_study(study)
    assert loaded == load_study(study / "study.yaml")
    assert loaded.folder == study
    assert loaded.config.name == "small"
    assert loaded.config.data.validation_fraction == 0.25
    assert loaded.config.bounds[0].bound == 1e6
    assert loaded.config.sampler.type == "tpe"
    assert loaded.space.name == "digits_resnet"


def test_all_problems_are_told_at_once_in_the_order_of_lines(study):
    text = """\
name: my study
data: {type: digitz}
teacher: {type: student, family: resnett, choices: {}}
space: digits_resne
objectives: [macs, flops, macs]
constraints: ["macs<=1e6", "macs>=1e7", "accuracy<=0.9", "foo<3", "params<=1", "params<=2"]
costs: {foo: {}, latency_ms: {thread: 1}}
training: {epochs: 0, lr: 1, optimizer: adam}
distillation:
  losses:
    - {type: kd, temperature: -1}
    - {type: kdd}
    - {typ: kd}
sampler: {type: tpe, startup_trials: many}
executor: {workers: 0, time_limit_s: 5}
export: {formats: [onnx, foo], pick: zzz}
"""
    found = problems_of(study, text)
    expected = [
        "study.yaml:1: name: ",
        "study.yaml:2: data.type: no data set is called 'digitz'; did you mean 'digits'? (allowed: ",
        "study.yaml:3: teacher.family: no student family is called 'resnett'; did you mean 'resnet'? (allowed: ",
        "study.yaml:4: space: no search space is called 'digits_resne'; did you mean 'digits_resnet'?",
        "study.yaml:5: objectives: must include one score",
        "study.yaml:5: objectives.1: no quantity is called 'flops' (allowed: accuracy, ",
        "study.yaml:5: objectives.2: 'macs' stands twice",
        "study.yaml:6: constraints.1: no student can meet both macs<=1e+06 and macs>=1e+07",
        "study.yaml:6: constraints.2: accuracy is to be high",
        "study.yaml:6: constraints.3: 'foo<3' is not a bound",
        "study.yaml:6: constraints.5: params is bounded twice",
        "study.yaml:7: costs.foo: no cost is called 'foo'",
        "study.yaml:7: costs.latency_ms.thread: unknown key; did you mean 'threads'?",
        "study.yaml:8: training.epochs: must be at least 1, got 0",
        "study.yaml:8: training.lr: unknown key (allowed: ",
        "study.yaml:8: training.optimizer: must be 'sgd' or 'adamw', got 'adam'",
        "study.yaml:11: distillation.losses.0.temperature: ",
        "study.yaml:12: distillation.losses.1.type: no loss is called 'kdd'; did you mean 'kd'?",
        "study.yaml:13: distillation.losses.2.type: is required",
        "study.yaml:14: sampler.startup_trials: ",
        "study.yaml:15: executor.time_limit_s: is set by the run",
        "study.yaml:15: executor.workers: ",
        "study.yaml:16: export.formats.1: no export format is called 'foo'",
        "study.yaml:16: export.pick: 'zzz' picks nothing",
    ]
    for start in expected:
        assert sum(line.startswith(start) for line in found) == 1, (start, found)
    assert len(found) == len(expected), set(found)
    lines = [int(line.split(":")[1]) for line in found]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: small\n", "", "study.yaml:1: name: is required"),
        ("sampler: tpe", "sampler: 5", "study.yaml:13: sampler: "),
        ("sampler: tpe", "objectives: accuracy", "study.yaml:13: objectives: "),
        ("sampler: tpe", "objectives: [accuracy]", "study.yaml:13: objectives: "),
        (
            "sampler: tpe",
            "objectives: [macs, perplexity]",
            "study.yaml:13: objectives.1: what learns from this kind of data is not scored by perplexity "
            "(allowed: accuracy, f1, matthews)",
        ),
        ("sampler: tpe", "constraints: macs<=1", "study.yaml:13: constraints: stands twice (first on line 8)"),
        ("[macs<=1M]", "[7]", "study.yaml:8: constraints.0: must be text, got 7"),
        ("[macs<=1M]", "['macs<=-3']", "study.yaml:8: constraints.0: no student can meet macs<=-3"),
        ("[macs<=1M]", "[latency_ms<=0]", "study.yaml:8: constraints.0: no student can meet latency_ms<=0"),
        ("training: {epochs: 3}", "training: 3", "study.yaml:9: training: "),
        ("{epochs: 3}", "{epochs: three}", "study.yaml:9: training.epochs: must be a whole number"),
        ("{epochs: 3}", "{augmentation: {flips: true}}", "study.yaml:9: training.augmentation.flips: unknown key"),
        ("training.learning_rate", "training.learn_rate", "study.yaml:15: tune.training.learn_rate: "),
        ("training.learning_rate", "training.epochs", "study.yaml:15: tune.training.epochs: "),
        ("low: 0.01", "low: 0.9", "study.yaml:15: tune.training.learning_rate: needs low < high"),
        ("  family: resnet\n", "  family: resnet\n  training: {epoch: 3}\n", "study.yaml:6: teacher.training.epoch: "),
        ("stem_width: 16,", "stem_width: -1,", "study.yaml:6: teacher.choices.stem_width: "),
        ("type: student", "type: students", "study.yaml:4: teacher.type: no teacher is called 'students'"),
    ],
)  # fmt: skip
def test_one_mistake(study, old, new, message):
    assert old in GOOD
    found = problems_of(study, GOOD.replace(old, new))
    assert any(line.startswith(message) for line in found), found


def test_a_mistake_in_the_studys_own_space_names_that_file_and_line(study):
    (study / "mine.yaml").write_text("family: resnet\nchoices:\n  stem_width: [8, 8]\n  stagex.depth: [1]\n")
    found = problems_of(
        study, GOOD.replace("space: digits_resnet", "space: mine.yaml").replace("epochs: 3", "epochs: 0")
    )
    assert found[0].startswith("study.yaml:9: training.epochs: ")
    assert any(line.startswith("mine.yaml:3: choices.stem_width: the value 8 stands twice") for line in found)


def test_what_is_wrong_between_sections_is_told_beside_everything_else(study):
    """A mistake hides another one only where the other cannot be told without it."""
    (study / "mine.yaml").write_text("family: resnet\nchoices:\n  stem_width: [8, 8]\n  stagex.depth: [1]\n")
    text = (
        GOOD.replace("name: small", "name: my study")
        .replace("digits_resnet", "mine.yaml")
        .replace("{epochs: 3}", "{epochs: 3, lr: 1}")
        .replace("sampler: tpe", "sampler: {type: tpe, startup_trials: 0}\nrungs: [{epochs: 2}, {epochs: 1}]")
        .replace("tune:\n", "tune:\n  training.nothing: {low: 1, high: 2}\n")
    )
    starts = [
        "study.yaml:1: name: must be letters, digits",
        "study.yaml:9: training.lr: unknown key",
        "study.yaml:13: sampler.startup_trials: must be at least 1",
        "study.yaml:14: rungs: the last one is the search's full score (1 epoch), but training states 3 epochs",
        "study.yaml:14: rungs.1: 1 epoch after 2 epochs",
        "study.yaml:16: tune.training.nothing: is no setting",
        "mine.yaml:2: choices.stage1.depth: is required",
        "mine.yaml:3: choices.stem_width: the value 8 stands twice",
        "mine.yaml:4: choices.stagex.depth: ",
    ]
    found = problems_of(study, text)
    assert [any(line.startswith(start) for line in found) for start in starts] == [True] * len(starts), found
    assert len(found) == len(starts), found


def test_a_teacher_may_have_a_name(study):
    """`teachers` is a mapping; `teacher` is short for one of them."""
    plain = yaml.safe_load(GOOD)
    named = {**{key: value for key, value in plain.items() if key != "teacher"}, "teachers": {"big": plain["teacher"]}}
    (study / "study.yaml").write_text(yaml.safe_dump(named, sort_keys=False))
    config = load_study(study).config
    assert config.teachers == {"big": config.teacher}
    (study / "study.yaml").write_text(GOOD)
    assert load_study(study).config.model_copy(update={"teacher_name": "big"}) == config
    assert load_study(study).config.teachers.keys() == {"teacher"}
    for wrong in ({**named, "teacher": plain["teacher"]}, {**named, "teachers": {}}):
        (found,) = problems_of(study, yaml.safe_dump(wrong, sort_keys=False))
        assert "teachers: are a mapping of names to teachers" in found
    named["teachers"]["big"]["family"] = "odd"
    (found,) = problems_of(study, yaml.safe_dump(named, sort_keys=False))
    assert "teacher.family: no student family is called 'odd'" in found


@pytest.mark.parametrize(
    ("losses", "ensemble", "message"),
    [
        (
            [{"type": "kd", "of": "third"}],
            None,
            "losses.0.of: no teacher is called 'third' (allowed: big, wide, ens",
        ),
        ([{"type": "kd", "of": "big"}], None, "further_teachers.wide: no loss learns of the teacher wide"),
        ([{"type": "hint"}], None, "hint reads more than logits, and an ensemble has no more (allowed: big, wide)"),
        ([{"type": "kd"}], {"weights": {"wild": 1}}, "ensemble.weights.wild: no teacher is called 'wild'"),
        ([{"type": "kd"}], {"weights": {"big": 0}}, "ensemble.weights: all of them are 0: nobody is listened to"),
        (
            [{"type": "kd", "of": "big"}, {"type": "kd", "of": "wide"}],
            {"mean": "logits"},
            "distillation.ensemble: no loss learns of it",
        ),
    ],
)
def test_whom_losses_learn_of_is_checked_on_paper(
    tmp_path: Path, losses: list[dict], ensemble: dict | None, message: str
) -> None:
    study = tiny.write(tmp_path)
    plain = yaml.safe_load((study / "study.yaml").read_text())
    teacher = plain.pop("teacher")
    plain["teachers"] = {"big": teacher, "wide": teacher}
    plain["distillation"] = {"losses": losses, **({} if ensemble is None else {"ensemble": ensemble})}
    found = problems_of(study, yaml.safe_dump(plain, sort_keys=False))
    assert any(message in problem for problem in found), found
    del plain["distillation"]
    (study / "study.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    assert list(load_study(study).config.teachers) == ["big", "wide"]
    plain["teachers"] = {"big": teacher, "ensemble": teacher}
    found = problems_of(study, yaml.safe_dump(plain, sort_keys=False))
    assert any("ensemble is all teachers together" in problem for problem in found), found


OTHER = [{"family": "vit", "choices": {"width": 8, "depth": 1, "heads": 1, "patch_size": 4}}]
UNSPELLED = [{"family": "resnet", "choices": {}}]


@pytest.mark.parametrize(
    ("loss", "more", "message"),
    [
        ({"type": "kd", "of": "self"}, {}, "distillation.losses.0.of: kd of what the student itself gives is at its"),
        ({"type": "srrl", "of": "ema"}, {}, "srrl reads the classifier of a network that stays as it is"),
        ({"type": "kd", "of": "peers"}, {"start": "inherited"}, "peers that begin inherited are equal and stay so"),
        ({"type": "hint", "of": "peers"}, {"peers": OTHER}, "hint reads more than logits, and students of other kinds"),
        ({"type": "kd", "of": "peers"}, {"peers": UNSPELLED}, "distillation.peers.0.stem_width"),
        ({"type": "kd", "of": "peers"}, {"peers": "front"}, "distillation.peers: only finalists have a front"),
        ({"type": "kd", "of": "ema"}, {"peers": OTHER}, "peers is stated, and no loss learns of it"),
        (
            {"type": "kd", "of": "ema"},
            {"rungs": [{"start": "supernet"}, {"epochs": 2}]},
            "a supernet's networks learn of teachers, and ema is the moving average of a student",
        ),
    ],
)
def test_sources_that_learn_are_checked_on_paper(tmp_path: Path, loss: dict, more: dict, message: str) -> None:
    study = tiny.write(tmp_path)
    plain = yaml.safe_load((study / "study.yaml").read_text())
    plain.pop("training", None)
    peers = {name: more[name] for name in ("peers",) if name in more}
    more = {name: value for name, value in more.items() if name not in peers}
    plain |= {"distillation": {"losses": [loss], **peers}, "tune": {}, **more}
    found = problems_of(study, yaml.safe_dump(plain, sort_keys=False))
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize(
    ("old", "new", "alone"),
    [
        # The last rung is wrong in itself: whether it is longer than the first, and what training says, is not known.
        ("training: {epochs: 3}", "rungs: [{epochs: 2}, {epochs: 0}]", ["rungs.1.epochs"]),
        ("training: {epochs: 3}", "training: {epochs: 0}\nrungs: [{epochs: 2}]", ["training.epochs"]),
        ("temperature: 4}", "temperature: 4}\n    - {typ: kd}", ["distillation.losses.1.type"]),
        ("{low: 0.01, high: 0.3, log: true}", "{low: 0.01}", ["tune.training.learning_rate.high"]),
        ("name: small", "evaluator: supernett", ["evaluator.type", "name"]),
    ],
)
def test_a_mistake_has_no_echo_in_what_depends_on_it(study, old, new, alone):
    text = GOOD.replace("training.learning_rate", "distillation.losses.0.temperature") if "losses" in alone[0] else GOOD
    found = problems_of(study, text.replace(old, new))
    assert sorted(line.split(": ")[1] for line in found) == sorted(alone), found


def test_a_space_file_that_is_not_there_is_told_at_its_line(study):
    found = problems_of(study, GOOD.replace("space: digits_resnet", "space: mine.yaml"))
    assert len(found) == 1
    assert found[0].startswith("study.yaml:7: space: ")
    assert "No such file" in found[0]


def test_overrides_are_read_as_yaml_and_by_index(study):
    overrides = [
        "training.epochs=7",
        "training.learning_rate=1e-2",
        "distillation.losses.0.weight=0.5",
        "objectives=[accuracy, macs, params]",
        "sampler.startup_trials=3",
        "budget.trials=9",
        "tune.training.weight_decay={low: 1e-5, high: 1e-3}",
        "tune.training.learning_rate.high=0.2",
    ]
    config = load_study(study, overrides).config
    assert config.training.epochs == 7
    assert config.training.learning_rate == 0.01
    assert config.distillation.losses[0].weight == 0.5
    assert config.objectives == ("accuracy", "macs", "params")
    assert (config.sampler.type, config.sampler.options) == ("tpe", {"startup_trials": 3})
    assert config.budget.trials == 9
    assert config.tune["training.weight_decay"].high == 1e-3
    assert (config.tune["training.learning_rate"].low, config.tune["training.learning_rate"].high) == (0.01, 0.2)


def test_a_misspelt_override_is_told_as_one(study):
    printed = problems_of(study, (study / "study.yaml").read_text(), "trainng.epochs=3")
    assert len(printed) == 1
    assert printed[0].startswith("--set: trainng: unknown key")


def test_a_final_training_has_room_to_grow_until_it_is_flat(study):
    text = (study / "study.yaml").read_text()
    printed = problems_of(study, text, "final.until=flat", "final.epochs=300")
    assert any("max_epochs must be at least that" in line for line in printed)
    assert load_study(study, ["final.until=flat", "final.epochs=200"]).config.final.max_epochs == 200


def test_bad_overrides_are_named_beside_the_files_own_problems(study):
    overrides = [
        "epochs",
        "name.x=1",
        "training.epochs=many",
        "distillation.losses.4.weight=1",
        "budget.trials=[1",
        "a..b=1",
    ]
    found = problems_of(study, GOOD.replace("validation_fraction: 0.25", "validation_fraction: 2"), *overrides)
    starts = [
        "--set epochs: is not key=value",
        "--set name.x=1: name is 'small', which has no 'x' inside",
        "--set distillation.losses.4.weight=1: distillation.losses is a list of 1",
        "--set budget.trials=[1: ",
        "--set a..b=1: is not key=value",
        "--set: training.epochs: must be a whole number",
        "study.yaml:2: data.validation_fraction: must be below 1, got 2",
    ]
    assert len(found) == len(starts), found
    for line, start in zip(found, starts, strict=True):
        assert line.startswith(start)


def test_a_study_that_is_not_there_is_told_with_its_neighbours(study, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no such folder or file; did you mean .*small"):
        load_study(tmp_path / "smal")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no study\.yaml"):
        load_study(tmp_path / "empty")


def test_a_member_whose_import_fails_is_told_not_raised(study, monkeypatch):
    from kdnas.samplers import SAMPLERS

    def broken(name, options):
        raise ImportError("No module named 'optuna'")

    monkeypatch.setattr(SAMPLERS, "problems", broken)
    found = problems_of(study, GOOD)
    assert found == [
        "study.yaml:13: sampler.type: 'tpe' cannot be used on this machine: No module named 'optuna'; "
        "see `kdnas doctor`"
    ]


DERIVED = GOOD.replace(
    "space: digits_resnet", "space: {derive: teacher, depth: 0.5..1, width: [0.5, 1], freeze: [stem]}"
)


def test_students_cut_out_of_the_teacher_are_stated_in_the_study(study):
    (study / "study.yaml").write_text(DERIVED)
    loaded = load_study(study)
    assert (loaded.space.name, loaded.space.family, loaded.space.choices) == ("derived", "derived", ())
    assert loaded.space.options == {"depth": "0.5..1", "width": [0.5, 1], "freeze": ["stem"]}
    assert (loaded.config.start, loaded.config.final_fidelity.start) == ("inherited", "inherited")
    assert load_study(study, ["start=random"]).config.start == "random"
    assert load_study(study, ["space.round_to=4"]).space.options["round_to"] == 4


@pytest.mark.parametrize(
    ("stated", "steps"),
    [
        ([], ("adamw", 1e-3)),
        (["training.epochs=3", "training.weight_decay=0.01"], ("adamw", 1e-3)),
        (["training.learning_rate=0.01"], ("sgd", 0.01)),
        (["training.optimizer=sgd"], ("sgd", 0.1)),
        (["start=random"], ("sgd", 0.1)),
        (["tune={training.learning_rate: {low: 0.001, high: 0.02}}"], ("sgd", 0.1)),
    ],
)
def test_what_is_inherited_is_trained_with_small_steps_unless_the_study_speaks_of_steps(study, stated, steps):
    (study / "study.yaml").write_text(DERIVED.partition("tune:")[0])
    training = load_study(study, stated).config.training
    assert (training.optimizer, training.learning_rate) == steps


def test_the_steps_of_what_is_inherited_are_those_that_its_family_states(study):
    (study / "study.yaml").write_text(DERIVED.partition("tune:")[0])
    derived, training = STUDENTS.get("derived"), load_study(study).config.training
    assert (training.optimizer, training.learning_rate) == (derived.optimizer, derived.learning_rate)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{derive: student}", "study.yaml:7: space.derive: there is no teacher called 'student' (allowed: teacher)"),
        ("{derive: teacher, widths: [0.5]}", "study.yaml:7: space.widths: unknown key; did you mean 'width'?"),
        ("{derive: teacher, depth: most}", "study.yaml:7: space.depth: must be shares of the whole such as [0.5, 1]"),
        ("{derive: teacher, width: [0.5, 64]}", "study.yaml:7: space.width: must be shares"),
        ("{derive: teacher, granularity: layer}", "space.granularity: must be 'network', 'stage' or 'block'"),
        ("{derive: teacher, round_to: 0}", "space.round_to: must be at least 1, got 0"),
        ("{depth: 0.5..1}", "study.yaml:7: space.derive: is required"),
    ],
)
def test_what_is_wrong_with_a_derived_space_is_told_with_its_line_and_what_is_allowed(study, space, message):
    (problem,) = problems_of(study, GOOD.replace("space: digits_resnet", f"space: {space}"))
    assert message in problem


def test_students_cut_out_of_the_teacher_may_share_weights(study):
    (study / "study.yaml").write_text(DERIVED)
    assert load_study(study, ["start=supernet"]).config.shares_weights


def test_a_space_file_has_no_students_of_the_teacher(study):
    (study / "own.yaml").write_text("family: derived\nchoices: {depth: [1, 2]}\n")
    (problem,) = problems_of(study, GOOD.replace("digits_resnet", "own.yaml"))
    assert "own.yaml:1: family: derived: its choices are the teacher's, which a study states by" in problem


def test_a_pipe_in_the_place_of_a_study_and_a_link_that_leads_nowhere_are_told_as_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "study.yaml")
    with pytest.raises(KdnasError, match="is a pipe, not a file"):
        load_study(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="there is no such folder or file$"):
        load_study(tmp_path / "link")
