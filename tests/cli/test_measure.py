import json

import pytest

from kdnas.cli.main import main
from kdnas.core.task import image_classification
from kdnas.targets import Missing
from kdnas.workshop import measuring


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the tiny digits study."""
    import tiny

    folder = tmp_path_factory.mktemp("measured")
    study = tiny.write(folder)
    out = folder / "run"
    assert main(["search", str(study), "--out", str(out), "--set", "final.seeds=1", "--set", "training.epochs=1"]) == 0
    return out


@pytest.fixture(autouse=True)
def _steady(monkeypatch):
    """The machine of the tests may be busy: that is what some of them are not about."""
    monkeypatch.setattr(measuring, "_WARMUP", 1)


QUICK = ("--repeats", "5", "--max-drift", "99")


def test_the_front_of_a_run_is_measured(run, capsys):
    assert main(["measure", str(run), "--target", "cpu", *QUICK]) == 0
    shown = capsys.readouterr()
    assert "cpu, 1 thread, batch 1, float32" in shown.out
    assert "5 passes each; the reference network took" in shown.out
    members = measuring.subjects(run)
    assert members
    for member in members:
        assert member.task == image_classification((1, 8, 8), 10)
        assert member.arch.arch_id in shown.out
    assert f"measuring {len(members)} on" in shown.err


def test_json_is_plain_data_and_pick_takes_one(run, capsys):
    assert main(["measure", str(run), "--pick", "best", "--target", "cpu", "--batch-size", "4", "--json", *QUICK]) == 0
    shown = capsys.readouterr()
    (report,) = json.loads(shown.out)["targets"]
    assert shown.err == ""
    assert report["target"] == "cpu"
    assert report["where"] == "cpu, 1 thread, batch 4, float32"
    (student,) = report["students"]
    assert student["latency_ms"]["value"] > 0
    assert student["latency_ms"]["repeats"] == 5
    assert student["peak_memory_bytes"]["value"] > 4 * student["params"]
    assert (student["energy_mj"] is None) == ("energy_mj_missing" in student)


def test_a_quantity_without_a_counter_is_shown_empty_with_its_reason(run, capsys, monkeypatch):
    monkeypatch.setattr("kdnas.targets.cpu.processor_energy", lambda: Missing("the counter is locked away"))
    assert main(["measure", str(run), "--pick", "best", "--target", "cpu", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "energy_mj: not measured: the counter is locked away." in out
    row = next(line for line in out.splitlines() if line.startswith(measuring.subjects(run, "best")[0].arch.arch_id))
    assert row.split()[-2:] == ["–", "–"]


def test_an_unsteady_machine_ends_with_one(run, capsys, monkeypatch):
    monkeypatch.setattr("kdnas.nn.timing.Timing.drift", 3.0)
    assert main(["measure", str(run), "--target", "cpu", "--repeats", "5"]) == 1
    assert "too unsteady to measure on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--target", "cpu"], "there is no such folder or file"),
        (["RUN", "--target", "toaster"], "no target is called 'toaster'"),
        (["RUN", "--target", "cpu", "--pick", "macs<=1"], "no student of the front meets macs<=1"),
        (["RUN", "--target", "cuda", "--threads", "2"], "--threads: target cuda has no such option"),
        (["RUN"], "target"),
    ],
)
def test_bad_input_ends_with_two(run, capsys, arguments, message):
    assert main(["measure", *[str(run) if a == "RUN" else a for a in arguments]]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
