from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from trained_run import study_config, trained_run

from kdnas.core.data import ImageData
from kdnas.core.fidelity import Fidelity
from kdnas.errors import ConfigError
from kdnas.plain_yaml import dump_yaml
from kdnas.plan.train_file import (
    TrainFile,
    load_train_file,
    train_file_for,
    with_epochs,
)
from kdnas.record.records import RunRecord
from kdnas.study.tuning import final_recipe


@pytest.fixture(scope="module")
def run(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return trained_run(tmp_path_factory.mktemp("run"), digits, teacher_fingerprint="feed")


@pytest.fixture
def file(run: RunRecord, digits: ImageData) -> TrainFile:
    return train_file_for(run, run.trials[0], digits)


def write(path: Path, file: TrainFile, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**file.plain(), **changes}, sort_keys=False))
    return path


def test_written_and_read_back_it_is_equal(file: TrainFile, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("# a comment\n" + dump_yaml(file.plain()))
    assert load_train_file(path) == file


def test_it_states_the_final_training_with_tuned_settings(file: TrainFile, run: RunRecord) -> None:
    assert file.training.epochs == 2
    assert file.training.data_fraction == 1.0
    assert file.training.learning_rate == 0.15
    assert file.distillation.losses[0].options == {"temperature": 2.5}
    assert file.distillation.losses[0].weight == 0.5
    assert file.student == run.trials[0].arch
    assert file.teacher_fingerprint == "feed"
    assert file.provenance.trial == 7


def test_without_final_epochs_the_search_epochs_count() -> None:
    config = study_config(final={"epochs": None, "data_fraction": 0.75})
    training = final_recipe(config, {}).training
    assert (training.epochs, training.data_fraction) == (1, 0.75)


def test_with_epochs_changes_only_them(file: TrainFile) -> None:
    longer = with_epochs(file, 9)
    assert longer.training.epochs == 9
    assert with_epochs(longer, 2) == file


def test_every_schema_problem_is_told_with_its_line(file: TrainFile, tmp_path: Path) -> None:
    plain = file.plain()
    plain["training"]["learning_rate"] = "fast"
    plain["trainning"] = {}
    del plain["seed"]
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        load_train_file(path)
    lines = path.read_text().splitlines()
    line = 1 + next(index for index, text in enumerate(lines) if "learning_rate" in text)
    wheres = {problem.where for problem in caught.value.problems}
    assert f"train.yaml:{line}: training.learning_rate" in wheres
    assert any(where.endswith(": trainning") for where in wheres)
    assert any(where.endswith(": seed") for where in wheres)


def test_a_full_training_at_a_share_of_the_resolution_is_refused(file: TrainFile, tmp_path: Path) -> None:
    plain = file.plain()
    assert "resolution_fraction" not in plain["training"]
    plain["training"]["resolution_fraction"] = 0.5
    with pytest.raises(ConfigError, match=r"training: .*at the full resolution"):
        load_train_file(write(tmp_path / "train.yaml", file, **plain))


def test_a_search_at_half_the_resolution_ends_in_trainings_at_the_full_one() -> None:
    config = study_config(training={"epochs": 3, "resolution_fraction": 0.5}, final={"epochs": None})
    assert config.fidelities[0].amount == 0.75
    assert final_recipe(config, {}).training.fidelity == config.final_fidelity == Fidelity(3)


def test_unknown_members_and_options_are_told_together(file: TrainFile, tmp_path: Path) -> None:
    plain = file.plain()
    plain["distillation"]["losses"] = [{"type": "kdd", "weight": 1.0}, {"type": "kd", "warmth": 3}]
    plain["teachers"] = {"teacher": {"type": "oracle"}}
    plain["data"]["type"] = "digit"
    with pytest.raises(ConfigError) as caught:
        load_train_file(write(tmp_path / "train.yaml", file, **plain))
    printed = str(caught.value)
    for part in ("'kdd'", "did you mean 'kd'", "losses.1.warmth", "'oracle'", "'digit'; did you mean 'digits'"):
        assert part in printed


def test_an_edited_arch_no_longer_fits_its_id(file: TrainFile, tmp_path: Path) -> None:
    arch = {**file.plain()["arch"]}
    arch["choices"] = {**arch["choices"], "stage1.width": 8}
    with pytest.raises(ConfigError, match=r"arch_id: is \w{12}, but the arch below it is"):
        load_train_file(write(tmp_path / "train.yaml", file, arch=arch))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arch": {"family": "resnet", "choices": {"stem_width": 4}}}, "is required"),
        ({"arch": {"family": "rasnet", "choices": {}}}, "did you mean 'resnet'"),
        ({"statistics": {"channel_mean": [1.0, 2.0], "channel_std": [1.0]}}, "one value for each of the 1 channels"),
        ({"statistics": {"channel_mean": [1.0], "channel_std": [0.0]}}, "needs values above 0"),
        ({"class_names": ["one"]}, "class_names are 1, and task.outputs is 10"),
        ({"format_version": 3}, "format_version"),
        ({"task": {"kind": "image_classification"}}, "task.inputs: is required"),
    ],
)
def test_unsound_files_are_refused(file: TrainFile, tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_train_file(write(tmp_path / "train.yaml", file, **changes))


def test_files_of_the_first_version_are_read(file: TrainFile, tmp_path: Path) -> None:
    plain = file.plain()
    task, statistics, teachers = (plain.pop(name) for name in ("task", "statistics", "teachers"))
    plain |= {
        "format_version": 1,
        "input_shape": task["inputs"][0]["shape"],
        "teacher": teachers["teacher"],
        **statistics,
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    assert load_train_file(path) == file


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [\n", "!!python/object/apply:os.system ['true']\n"])
def test_what_is_not_a_train_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        load_train_file(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        load_train_file(tmp_path / "nothing.yaml")


def test_the_students_own_normalisation_is_stated_where_it_is_its_teachers(file: TrainFile, tmp_path: Path) -> None:
    assert "channel_mean" not in file.with_preprocessing({}).plain()["preprocessing"]
    own = {"channel_mean": (120.0,), "channel_std": (60.0,)}
    stated = file.with_preprocessing(own)
    assert stated.plain()["preprocessing"]["channel_mean"] in ([120.0], (120.0,))
    assert load_train_file(write(tmp_path / "train.yaml", stated)) == stated
