"""`kdnas init`: what it writes is sound, complete, and never over the user's own files."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import yaml

from kdnas.cli._own_files import Chosen, choose
from kdnas.cli.init import proposed_training, study_files
from kdnas.cli.main import main
from kdnas.datasets import DATASETS
from kdnas.study.config import StudyConfig
from kdnas.study.loading import load_study
from kdnas.study.spaces import space_names
from kdnas.teachers import TEACHERS


@pytest.mark.parametrize(("data", "teacher"), list(itertools.product(DATASETS.names(), TEACHERS.names())))
def test_every_combination_is_a_sound_study(tmp_path, data, teacher):
    for name, text in study_files(tmp_path, Chosen(data), Chosen(teacher), "auto").items():
        (tmp_path / name).write_text(text)
    config = load_study(tmp_path).config
    assert (config.data.type, config.teacher.type) == (data, teacher)


@pytest.mark.parametrize("space", space_names())
def test_every_space_can_be_the_users_own(tmp_path, space):
    data = {"texts_bert": "text_table", "texts_gpt": "text_corpus"}.get(space, "digits")
    for name, text in study_files(tmp_path, Chosen(data), Chosen("student"), space, own_space=True).items():
        (tmp_path / name).write_text(text)
    loaded = load_study(tmp_path)
    assert loaded.config.space == "space.yaml"
    carried = load_study(tmp_path, [f"space={space}"]).space
    assert (loaded.space.choices, loaded.space.conditions) == (carried.choices, carried.conditions)


def test_every_setting_is_named_and_the_written_values_are_the_defaults(tmp_path):
    text = study_files(tmp_path, Chosen("image_folder"), Chosen("module"), "cifar_resnet")["study.yaml"]
    for section, model in StudyConfig.model_fields.items():
        spelled = "teachers" if section == "further_teachers" else section
        assert any(f"{before}{spelled}:" in text for before in ("\n", "# ", "`")), section
        for key in getattr(model.annotation, "model_fields", {}):
            assert f" {key}:" in text or key == "workers", f"{section}.{key}"
    plain = yaml.safe_load(text)
    config = StudyConfig.model_validate(plain)
    written = {key: getattr(config, key) for key in ("budget", "final", "export", "objectives", "constraints", "seed")}
    defaults = {key: StudyConfig.model_fields[key].get_default() for key in written}
    defaults["final"] = defaults["final"].model_copy(update={"until": "flat"})
    assert written == defaults


@pytest.mark.parametrize("images", [60, 800, 2_062, 5_000, 45_000, 1_200_000])
def test_epochs_and_batches_follow_the_number_of_images(tmp_path, images):
    epochs, batch_size = proposed_training(images)
    assert epochs * -(-images // batch_size) >= 1_000
    assert (batch_size <= 32) == (images < 5_000)
    files = study_files(tmp_path, Chosen("digits"), Chosen("student"), "digits_resnet", samples=images)
    text = files["study.yaml"]
    (tmp_path / "study.yaml").write_text(text)
    config = load_study(tmp_path).config
    assert (config.training.epochs, config.training.batch_size) == (epochs, batch_size)
    assert "training.learning_rate" in config.tune


def test_data_that_is_there_is_looked_at(tmp_path, capsys):
    assert main(["init", str(tmp_path / "a"), "--data", "digits", "--teacher", "student"]) == 0
    training = load_study(tmp_path / "a").config.training
    assert training.epochs * -(-1150 // training.batch_size) >= 1_000
    assert main(["init", str(tmp_path / "b"), "--images", "50000"]) == 0
    assert load_study(tmp_path / "b").config.training.batch_size == 128


def test_data_that_is_there_and_not_read_as_stated_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDNAS_DATA", str(tmp_path))
    monkeypatch.setenv("KDNAS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "kritik.csv").write_text("Nummer;Text;Urteil\n" + "1;ein Film;gut\n2;ein Buch;öde\n" * 20)
    assert main(["init", str(tmp_path / "a"), "--data", "kritik.csv", "--teacher", "student"]) == 0
    told = capsys.readouterr().err
    assert "note: the data is there and cannot be read as stated: " in told
    assert "label_column: no column is called as a label usually is (allowed: Nummer, Text, Urteil)" in told


def test_numbers_as_labels_make_a_study_that_predicts_them(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("KDNAS_DATA", str(tmp_path))
    monkeypatch.setenv("KDNAS_CACHE", str(tmp_path / "cache"))
    rows = "".join(f"a film of {n},{n / 4}\n" for n in range(40))
    (tmp_path / "marks.csv").write_text("text,score\n" + rows)
    assert main(["init", str(tmp_path / "a"), "--data", "marks.csv", "--teacher", "student"]) == 0
    config = load_study(tmp_path / "a").config
    assert config.objectives[0] == "spearman"
    assert [loss.type for loss in config.distillation.losses] == ["mse"]
    assert "spearman>=0.9" in (tmp_path / "a" / "study.yaml").read_text()


def test_the_command_writes_tells_what_is_next_and_never_overwrites(tmp_path, capsys):
    folder = tmp_path / "my study!"
    assert main(["init", str(folder), "--data", "npz", "--own-space"]) == 0
    shown = capsys.readouterr().out
    assert "kdnas validate" in shown
    assert load_study(folder).config.name == "my-study"
    assert sorted(path.name for path in folder.iterdir()) == ["space.yaml", "study.yaml"]

    (folder / "study.yaml").write_text("mine\n")
    assert main(["init", str(folder)]) == 2
    assert "is there already; --force replaces it" in capsys.readouterr().err
    assert (folder / "study.yaml").read_text() == "mine\n"

    assert main(["init", str(folder), "--force"]) == 0
    assert load_study(folder).config.data.type == "image_folder"


def test_unknown_names_are_told_together_and_nothing_is_written(tmp_path, capsys):
    folder = tmp_path / "x"
    assert main(["init", str(folder), "--data", "imagenet", "--teacher", "resnet", "--space", "all"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in lines] == [" --data", " --teacher", " --space"]
    assert not folder.exists()


def test_a_file_in_the_folders_place_is_told(tmp_path, capsys):
    assert main(["init", str(tmp_path / "new" / "study.yaml")]) == 2
    assert f"names a file, and a study is a folder (allowed: {tmp_path / 'new'})" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file" / "study")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "space"),
    [
        ((), "cifar_resnet"),
        (("--size", "64"), "photo64_resnet"),
        (("--size", "96"), "photo64_resnet"),
        (("--size", "224"), "photo224_resnet"),
        (("--size", "28"), "cifar_resnet"),
        (("--data", "digits", "--teacher", "student"), "digits_resnet"),
        (("--size", "224", "--space", "photo224_mobilenet"), "photo224_mobilenet"),
    ],
)
def test_the_space_fits_the_size_of_the_images(arguments, space, tmp_path):
    assert main(["init", str(tmp_path / "s"), *arguments]) == 0
    config = load_study(tmp_path / "s").config
    assert config.space == space
    if "--size" in arguments:
        assert config.data.options["size"] == int(arguments[arguments.index("--size") + 1])


def test_data_of_one_size_is_not_resized(tmp_path, capsys):
    assert main(["init", str(tmp_path / "s"), "--data", "digits", "--size", "64"]) == 2
    assert "--size" in capsys.readouterr().err


def test_a_study_of_students_cut_out_of_the_teacher(tmp_path, capsys):
    assert main(["init", str(tmp_path / "cut"), "--data", "digits", "--teacher", "student", "--from-teacher"]) == 0
    study = load_study(tmp_path / "cut")
    assert study.space.family == "derived"
    assert study.config.start == "inherited"
    assert (study.config.training.optimizer, study.config.training.learning_rate) == ("adamw", 1e-3)
    rates = study.config.tune["training.learning_rate"]
    assert (rates.low, rates.high) == (1e-4, 1e-2), "3e-3 suits small parts of a CNN"
    assert (tmp_path / "cut" / "study.yaml").read_text().count("start: inherited") == 1
    assert main(["init", str(tmp_path / "other"), "--from-teacher", "--space", "digits_resnet"]) == 2
    assert "students are cut out of the teacher: there is no other space" in capsys.readouterr().err


def teacher_folder(root, name, architecture):
    (root / name).mkdir()
    (root / name / "config.json").write_text(json.dumps({"architectures": [architecture]}))


@pytest.mark.parametrize(
    ("architecture", "data"), [("BertForSequenceClassification", "text_table"), ("GPT2LMHeadModel", "text_corpus")]
)
def test_splits_that_were_saved_together_are_named(tmp_path, architecture, data):
    for split in ("dev", "test", "train"):
        (tmp_path / "saved" / split).mkdir(parents=True)
        (tmp_path / "saved" / split / "state.json").write_text("{}")
    teacher_folder(tmp_path, "mine", architecture)
    own_data, own_teacher = choose("saved", "mine", tmp_path)
    splits = {"train": "saved/train", "validation": "saved/dev", "test": "saved/test"}
    assert (own_data.type, own_data.options) == (data, splits)
    (tmp_path / "s").mkdir()
    text = study_files(tmp_path / "s", own_data, own_teacher, "auto", from_teacher=True)["study.yaml"]
    (tmp_path / "s" / "study.yaml").write_text(text)
    options = load_study(tmp_path / "s").config.data.options
    assert splits.items() <= options.items()
    assert "test_fraction" not in options


@pytest.mark.parametrize(
    ("files", "data", "architecture", "found"),
    [
        (
            ["reviews.csv"],
            "reviews.csv",
            "BertForSequenceClassification",
            ("text_table", "train", "sequence_classifier"),
        ),
        (
            ["all.parquet"],
            "all.parquet",
            "BertForSequenceClassification",
            ("text_table", "train", "sequence_classifier"),
        ),
        (["all.parquet"], "all.parquet", "ViTForImageClassification", ("parquet", "train", "huggingface")),
        (["r/train/good/1.txt"], "r", "BertForSequenceClassification", ("text_folder", "path", "sequence_classifier")),
        (["tales/1.txt"], "tales", "GPT2LMHeadModel", ("text_corpus", "train", "causal_lm")),
        (["tales.jsonl"], "tales.jsonl", "LlamaForCausalLM", ("text_corpus", "train", "causal_lm")),
        (["train.bin"], "train.bin", "GPT2LMHeadModel", ("token_files", "train", "causal_lm")),
        (["p/train/cat/1.png"], "p", "ViTForImageClassification", ("image_folder", "path", "huggingface")),
    ],
)
def test_files_of_the_users_own_say_what_reads_them(tmp_path, files, data, architecture, found):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    teacher_folder(tmp_path, "mine", architecture)
    own_data, own_teacher = choose(data, "mine", tmp_path)
    assert (own_data.type, next(iter(own_data.options)), own_teacher.type) == found
    assert dict(own_teacher.options) == {"model": "mine"}
    text = study_files(tmp_path / "s", own_data, own_teacher, "auto", size=16, from_teacher=True)["study.yaml"]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.yaml").write_text(text)
    assert load_study(tmp_path / "s").space.family == "derived"


@pytest.mark.parametrize(("teacher", "data"), [("sequence_classifier", "text_table"), ("causal_lm", "text_corpus")])
@pytest.mark.parametrize("flags", [(), ("--from-teacher",)])
def test_a_study_of_texts_does_not_speak_of_images(tmp_path, teacher, data, flags):
    assert (
        main(["init", str(tmp_path / "s"), "--teacher", teacher, "--size", "48", "--data-root", str(tmp_path), *flags])
        == 0
    )
    text = (tmp_path / "s" / "study.yaml").read_text()
    assert not re.findall("image|pixel|picture", text.replace("huggingface", "").replace("spatial", ""))
    config = load_study(tmp_path / "s").config
    assert (config.data.type, config.data.options["length"]) == (data, 48)
    assert config.data.options["tokenizer"] == config.teacher.options["model"] == "my_teacher"
    assert config.training.epochs * -(-5_000 // config.training.batch_size) >= 1_000
    assert ("huggingface" in config.export.formats) == bool(flags)


def test_a_file_that_is_nothing_kdnas_knows_is_told(tmp_path, capsys):
    (tmp_path / "notes.docx").write_bytes(b"")
    assert main(["init", str(tmp_path / "s"), "--data", "notes.docx", "--data-root", str(tmp_path)]) == 2
    assert "neither a name nor a file under the data root" in capsys.readouterr().err
