import json
from pathlib import Path

import pytest
import tiny
import torch
from typer.testing import CliRunner

from kdnas.cli.main import build_app, main
from kdnas.core.task import image_classification
from kdnas.students import family_for
from kdnas.study.spaces import load_space


def run_json(*arguments: str):
    result = CliRunner().invoke(build_app(), ["spaces", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_names_every_space_with_its_size():
    spaces = {space["name"]: space for space in run_json("list")}
    assert spaces["digits_resnet"]["archs"] == 4 * 72 * 72 * (1 + 2 * 36)
    assert spaces["cifar_mobilenet"]["family"] == "mobilenet"


def test_show_tells_choices_conditions_and_costs():
    shown = run_json("show", "digits_resnet", "--input", "1x8x8", "--classes", "10")
    assert shown["choices"]["stage2.width"] == [8, 16, 24, 32]
    assert {"choice": "stage3.skip", "when": "stage3.depth", "in": [1, 2]} in shown["conditions"]
    assert shown["costs"]["input"] == [1, 8, 8]
    macs = shown["costs"]["macs"]
    assert 4_000 < macs["min"] < macs["p10"] < macs["median"] < macs["p90"] < macs["max"] < 1.7e6


@pytest.mark.parametrize(
    ("space", "side", "sides"),
    [
        ("digits_resnet", 8, [8, 8, 4, 2]),
        ("photo64_resnet", 64, [32, 32, 16, 8, 4]),
        ("photo224_resnet", 224, [112, 56, 28, 14, 7]),
        ("photo224_mobilenet", 224, [112, 112, 56, 28, 14, 14, 7]),
    ],
)
def test_show_tells_how_stem_and_stages_stride(space, side, sides, capsys):
    """As the built networks do."""
    shown = run_json("show", space, "--input", f"3x{side}x{side}")["strides"]
    assert [part["size"] for part in shown] == [[f"{size}x{size}"] for size in sides]
    loaded = load_space(space, Path())
    family = family_for(loaded.family, image_classification((3, side, side), 10))
    largest = loaded.active({choice.name: choice.values[-1] for choice in loaded.choices})
    network = family.build(family.canonical(largest)).eval()
    seen = []
    for stage in network.stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[2]))
    with torch.no_grad():
        network(torch.zeros(1, 3, side, side))
    assert seen == sides[1:]
    assert main(["spaces", "show", space, "--input", f"3x{side}x{side}"]) == 0
    assert "stem_stride" in capsys.readouterr().out


def test_count_of_a_users_own_space(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(
        "family: resnet\nchoices:\n  stem_width: [8, 16]\n  stage1.depth: [1]\n  stage1.width: [8]\n"
        "  stage1.bottleneck: [plain]\n  stage1.skip: [identity, projection]\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    counted = run_json("count", "tiny.yaml")
    # from a stem of 8 the projection projects nothing
    assert counted == {
        "name": "tiny", "assignments": 4, "archs": 4, "networks": 3, "networks_exact": True, "sampled_assignments": 0
    }  # fmt: skip


@pytest.mark.parametrize("command", [["list"], ["show", "cifar_resnet"], ["count", "digits_resnet"]])
def test_text_is_a_table(command, capsys):
    assert main(["spaces", *command]) == 0
    out = capsys.readouterr().out
    assert "resnet" in out


def test_spaces_of_texts_are_priced_on_texts(capsys):
    shown = run_json("show", "texts_bert", "--input", "48x9000")
    assert shown["costs"]["input"] == [48, 9000]
    assert shown["costs"]["params"]["min"] > 64 * 9000
    assert shown["strides"] == []
    assert main(["spaces", "show", "texts_gpt"]) == 0
    assert "random archs on texts of 256 tokens of 4,096:" in capsys.readouterr().out


@pytest.mark.parametrize(("described", "first"), [("", "mine"), ("description: Small.\n", "mine: Small.")])
def test_a_space_without_a_description_is_headed_by_its_name(described, first, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(f"{described}choices: {{a: [1, 2]}}\n")
    assert main(["spaces", "show", str(tmp_path / "mine.yaml")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == first


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["show", "nope"], "no search space is called 'nope'"),
        (["show", "digits_resnet", "--input", "8x8"], "'8x8' is no image shape"),
        (["show", "texts_gpt", "--input", "3x32x32"], "'3x32x32' is no shape of texts"),
        (["count", "gone.yaml"], "gone.yaml: No such file"),
    ],
)
def test_bad_input_ends_with_2_and_one_message(command, message, capsys):
    assert main(["spaces", *command]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("error:") == 1
    assert captured.out == ""


def test_anatomy_shows_what_can_be_cut_out_of_a_studys_teacher(tmp_path):
    study = tiny.write(tmp_path)
    shown = run_json("anatomy", str(study))
    assert shown["kind"] == "convnet"
    assert shown["macs"] > shown["smallest"]["macs"] > 0
    (stem,) = [axis for axis in shown["axes"] if axis["name"] == "stem.0.channels"]
    assert (stem["size"], stem["inexact"]) == (8, "")
    assert "stem.0.weight" in stem["tied"]
    printed = CliRunner().invoke(build_app(), ["spaces", "anatomy", str(study), "--importance", "l1"])
    assert printed.exit_code == 0
    assert "stem.0.channels" in printed.stdout
    assert "better half" in printed.stdout
    ranked = run_json("anatomy", str(study), "--importance", "taylor")["importance"]
    assert len(ranked["stem.0.channels"]) == 8
    assert min(ranked["stem.0.channels"]) >= 0.0


def test_anatomy_of_a_study_without_a_teacher_is_refused(tmp_path, capsys):
    assert main(["spaces", "anatomy", "studies/nas_bench_macro"]) == 2
    assert "trains no students here" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A study whose students are cut out of its teacher."""
    study = tiny.write(tmp_path_factory.mktemp("cut"))
    text = (study / "study.yaml").read_text().replace("stem_width: 8", "stem_width: 16")
    space = "{derive: teacher, round_to: 4, freeze: [stages.0.0.branch.0], width: [0.5, 1]}"
    (study / "study.yaml").write_text(
        text.replace("space: space.yaml", f"space: {space}").replace("depth: 1", "depth: 3")
    )
    return study


def test_show_of_a_study_says_what_its_students_are_cut_out_of(cut, capsys, monkeypatch):
    shown = run_json("show", str(cut))
    assert shown["choices"] == {"stage1.depth": [1, 2, 3], "stage1.width": [8, 16], "stage1.inner": [4, 8, 12, 16]}
    assert shown["cuts"]["stage1.inner"] == ["stages.0.1.branch.0.0.channels", "stages.0.2.branch.0.0.channels"]
    assert shown["archs"] == 24
    axes = {axis["name"]: axis for axis in shown["anatomy"]["axes"]}
    assert (axes["stem.0.channels"]["size"], axes["stem.0.channels"]["role"]) == (16, "width")
    assert shown["costs"]["macs"]["max"] <= shown["anatomy"]["macs"]
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["spaces", "show", str(cut)]) == 0
    printed = capsys.readouterr().out
    assert "24 archs" in printed
    assert "stages.0.depth" in printed
    (row,) = [line for line in printed.splitlines() if line.startswith("stage1.inner")]
    assert row.rstrip().endswith(", ".join(shown["cuts"]["stage1.inner"]))  # no wrapping where no terminal is


def test_count_of_a_study_counts_networks_once(cut):
    counted = run_json("count", str(cut))
    # At depth 1 every inner width that is searched is gone with its block.
    assert (counted["assignments"], counted["networks"], counted["networks_exact"]) == (24, 2 * (1 + 2 * 4), True)


def test_show_of_a_study_with_a_space_of_its_own_shows_that(tmp_path, capsys):
    study = str(tiny.write(tmp_path))
    shown = run_json("show", study)
    assert shown["name"] == "space"
    assert shown["costs"] == {}  # they depend on the study's data
    assert run_json("show", study, "--input", "1x8x8")["costs"]["input"] == [1, 8, 8]
    assert main(["spaces", "show", study]) == 0
    assert "depends on the data" in capsys.readouterr().out
