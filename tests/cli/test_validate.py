"""`kdnas validate`: the summary of a sound study, every problem of an unsound one."""

from __future__ import annotations

import json

import audited_run
import pytest

from kdnas.cli.main import main

GOOD = """\
name: small
data: digits
teacher:
  type: student
  family: resnet
  choices: {stem_width: 8, stage1.depth: 1, stage1.width: 8, stage1.bottleneck: plain, stage1.skip: identity}
  training: {epochs: 1, batch_size: 256}
space: digits_resnet
constraints: [macs<=100k]
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.yaml").write_text(GOOD)
    return tmp_path


def test_a_sound_study_is_summed_up(study, capsys):
    assert main(["validate", str(study)]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("\nok\n")
    for fact in ("digits_resnet", "accuracy, macs", "40 trials", "macs<=100k", "0.9 kd"):
        assert fact in shown


def test_every_problem_is_told_with_status_2(study, capsys):
    (study / "study.yaml").write_text(GOOD.replace("name: small", "nam: small").replace("macs<=100k", "mac<=100k"))
    assert main(["validate", str(study)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("error: study.yaml:1: name: is required")
    assert lines[1].startswith("error: study.yaml:1: nam: unknown key; did you mean 'name'?")
    assert lines[2].startswith("error: study.yaml:9: constraints.0: no cost is called 'mac'")


def test_a_study_that_trains_nothing_has_neither_losses_nor_exports(tmp_path, capsys):
    study = audited_run.write_study(tmp_path)
    assert main(["validate", str(study), "--json", "--data-root", str(tmp_path)]) == 0
    resolved = json.loads(capsys.readouterr().out)
    assert resolved["evaluator"] == "table"
    assert (resolved["losses"], resolved["export"], resolved["export_pick"]) == ([], [], "none")


def test_json_of_both(study, capsys):
    assert main(["validate", str(study), "--json"]) == 0
    sound = json.loads(capsys.readouterr().out)
    assert sound["ok"] is True
    assert sound["objectives"] == ["accuracy", "macs"]
    assert (sound["export_pick"], sound["export"][:2]) == ("near-best", ["safetensors", "student_json"])
    assert main(["validate", str(study), "--json", "--set", "training.epochs=0"]) == 2
    unsound = json.loads(capsys.readouterr().out)
    assert unsound["ok"] is False
    assert unsound["problems"][0]["where"] == "--set: training.epochs"


def test_where_files_are_expected_and_whether_they_are_there(study, capsys):
    text = GOOD.replace("data: digits", "data: {type: image_folder, path: photos}")
    (study / "study.yaml").write_text(text)
    root = study / "root"
    root.mkdir()
    assert main(["validate", str(study), "--data-root", str(root)]) == 0
    assert f"{root / 'photos'} (MISSING)" in capsys.readouterr().out
    (root / "photos").mkdir()
    assert main(["validate", str(study), "--data-root", str(root)]) == 0
    assert f"{root / 'photos'} (there)" in capsys.readouterr().out


def test_a_fraction_beside_a_validation_split_is_said_to_be_unused(study, capsys):
    unused = "validation_fraction is not used: scores are made on what `validation` names"
    for more, printed in (("", False), (", validation_fraction: 0.2", True)):
        (study / "study.yaml").write_text(
            "name: small\nteacher: {type: sequence_classifier, model: bert}\nspace: {derive: teacher}\n"
            "data: {type: text_table, train: a.csv, test: b.csv, validation: c.csv, tokenizer: bytes" + more + "}\n"
        )
        assert main(["validate", str(study)]) == 0
        assert (f"the validation split that it states; {unused}" in capsys.readouterr().out) == printed
        assert main(["search", str(study), "--out", str(study / "run"), "--data-root", str(study)]) == 2  # no files
        assert (f"note: data: {unused}" in capsys.readouterr().err) == printed


def test_one_choice_is_one_choice(study, capsys):
    (study / "space.yaml").write_text(
        "family: resnet\nchoices: {stem_width: [8, 16]}\nfixed: {stage1.depth: 1, stage1.width: 8, "
        "stage1.bottleneck: plain, stage1.skip: identity}\n"
    )
    assert main(["validate", str(study), "--set", "space=space.yaml"]) == 0
    assert ", 1 choice, 2 distinct settings" in capsys.readouterr().out


def test_open_reads_the_data_makes_the_teacher_and_prices_students(study, capsys):
    trained = ["--set", "teacher.training={epochs: 6, batch_size: 64, learning_rate: 0.1}"]
    epochs = ["--set", "training.epochs=3", "--set", "final.epochs=5", "--set", "training.batch_size=128"]
    assert main(["validate", str(study), "--open", "--json", *trained, *epochs]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "1x8x8, 10 classes" in facts["images"]
    assert facts["students"][0].startswith("macs ")
    share = float(facts["within_constraints"].partition("%")[0])
    assert 0 < share < 100
    assert 50 < float(facts["teacher_measured"].removeprefix("validation accuracy ").partition(" %")[0]) <= 100
    assert "; macs " in facts["teacher_measured"]
    assert facts["teacher_outputs"] == "logits"
    assert facts["updates"].startswith("a score is 27 updates, a final training is 45 updates of batches of 128")
    assert "Below about 500" in facts["updates"]


def test_open_refuses_what_a_search_refuses(study, capsys):
    """One piece of code opens both: the same words for losses that the teacher cannot serve, and for a bad teacher."""
    (study / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    own = "teacher={type: module, factory: net.py:build, mean: [0], std: [255]}"
    losses = "distillation.losses=[{type: attention, weight: 1}]"
    printed = []
    for command in (["validate", str(study), "--open"], ["search", str(study), "--out", str(study / "run")]):
        for settings in ([own, losses], [own]):
            options = [part for setting in settings for part in ("--set", setting)]
            assert main([*command, *options, "--data-root", str(study)]) == 2
            printed.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("error")])
    assert printed[:2] == printed[2:]
    assert "attention compares maps" in printed[0][0]
    assert "which is chance" in printed[1][0]
    assert not (study / "run").exists()


def test_open_tells_constraints_that_nobody_can_meet(study, capsys):
    assert main(["validate", str(study), "--open", "--set", "constraints=[macs<=10]"]) == 2
    shown = capsys.readouterr().err
    assert "no student of space 'digits_resnet' meets macs<=10; the nearest miss breaks macs<=10 (macs is " in shown
