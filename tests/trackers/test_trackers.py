"""Trackers: each follows a search, and none of them can end one."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest

from kdnas.controller.events import Advanced, Note, Ready, StudyEnded, TrialEnded, plain_event
from kdnas.errors import ConfigError
from kdnas.study.config import Member
from kdnas.testing import TrackerConformance
from kdnas.testing.trackers import empty_run, search_events
from kdnas.trackers import TRACKERS, tracked


def needs(package: str):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


class TestJsonLines(TrackerConformance):
    member = "jsonl"

    def followed(self, run, events):
        lines = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
        printed = [event for event in events if not isinstance(event, Advanced)]
        assert [line["event"] for line in lines] == [type(event).__name__ for event in printed]
        scored = [line["trial"] for line in lines if line["event"] == "TrialEnded"]
        assert scored[0]["values"] == {"accuracy": 0.5, "macs": 2e5}
        assert [trial["state"] for trial in scored if not trial["values"]] == ["failed"]

    def test_the_file_lies_in_the_run_folder(self, run):
        for name in ("../events.jsonl", "/tmp/events.jsonl", ""):
            with pytest.raises(ConfigError, match="must lie in the run folder"):
                self.build(run, file=name)

    def test_a_link_out_of_the_run_folder_is_not_followed(self, run, tmp_path):
        victim = tmp_path / "victim"
        victim.write_text("mine")
        (run.folder / "events.jsonl").symlink_to(victim)
        with pytest.raises(ConfigError, match="leads out of the run folder"):
            self.build(run)
        assert victim.read_text() == "mine"


@needs("tensorboard")
class TestTensorBoard(TrackerConformance):
    member = "tensorboard"

    def followed(self, run, events):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        read = EventAccumulator(str(run.folder / "tensorboard")).Reload()
        complete = [event.trial for event in events if isinstance(event, TrialEnded) and event.trial.values]
        scores = {point.step: point.value for point in read.Scalars("trial/accuracy")}
        assert scores == {trial.number: pytest.approx(trial.values["accuracy"]) for trial in complete}
        volumes = [point.value for point in read.Scalars("front/hypervolume")]
        assert volumes == sorted(volumes)
        assert volumes[0] > 0
        ended = next(event for event in events if isinstance(event, StudyEnded))
        assert len(read.Scalars("front/macs")) == len({t.number for t in ended.run.trials if t.repeats})


@needs("mlflow")
class TestMLflow(TrackerConformance):
    member = "mlflow"

    @pytest.fixture(autouse=True)
    def _files_will_do(self, monkeypatch):
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")

    def build(self, run, **options):
        return super().build(run, **{"tracking_uri": (run.folder.parent / "mlruns").as_uri(), **options})

    def followed(self, run, events):
        from mlflow.tracking import MlflowClient

        client = MlflowClient((run.folder.parent / "mlruns").as_uri())
        experiment = client.get_experiment_by_name("followed")
        found = client.search_runs([experiment.experiment_id])
        search = [one for one in found if "kdnas.run" in one.data.tags]
        assert len(search) == 1, "a search that goes on finds its run"
        assert search[0].info.status == "FINISHED"
        assert search[0].data.tags["kdnas.ended"] == "all 3 trials are done"
        students = {one.data.tags["kdnas.trial"]: one for one in found if "kdnas.trial" in one.data.tags}
        closed = [event.trial for event in events if isinstance(event, TrialEnded)]
        assert set(students) == {str(trial.number) for trial in closed}
        for trial in closed:
            student = students[str(trial.number)]
            assert student.data.params["stem_width"] == str(trial.arch.choices["stem_width"])
            assert student.data.tags["mlflow.parentRunId"] == search[0].info.run_id
            assert student.info.status == ("FINISHED" if trial.values else "FAILED")
            assert student.data.metrics.get("accuracy") == trial.values.get("accuracy")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_told_before_anything_is_trained(name, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf'needs the package {name}.*pip install "kdnas\[{name}\]"'):
        TRACKERS.build(name, empty_run(tmp_path))


def test_what_happened_before_the_run_was_ready_is_followed_too(tmp_path):
    run, seen = empty_run(tmp_path), []
    events = search_events(run)
    with tracked(
        [Member(type="jsonl"), Member.model_validate({"type": "jsonl", "file": "b.jsonl"})], seen.append
    ) as observe:
        for event in events:
            observe(event)
    assert seen == events
    kept = [(tmp_path / name).read_text() for name in ("events.jsonl", "b.jsonl")]
    assert kept[0] == kept[1]
    assert json.loads(kept[0].splitlines()[0]) == {"event": "Note", "text": "opening the data", "passing": False}


@pytest.mark.parametrize(
    ("raises", "words"), [("OSError('the disk is full')", "the disk is full"), ("SystemExit(0)", "it ends the program")]
)
def test_a_tracker_that_raises_is_left_out_and_the_search_goes_on(raises, words, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from kdnas.trackers import Tracker\n\n\n"
        "class Mine(Tracker):\n"
        '    """Raises at the first trial."""\n\n'
        "    def take(self, event):\n"
        "        if type(event).__name__ == 'TrialEnded':\n"
        "            raise RAISES\n".replace("RAISES", raises)
    )
    from kdnas.plugins import own_name

    seen = []
    with tracked([Member(type=own_name(f"{path}:Mine")), Member(type="jsonl")], seen.append) as observe:
        for event in search_events(empty_run(tmp_path)):
            observe(event)
    notes = [event.text for event in seen if isinstance(event, Note)]
    assert len(notes) == 2
    assert notes[1].startswith("trackers.0: mine.py:Mine follows no more: ")
    assert words in notes[1]
    assert notes[1].endswith("; the search goes on")
    assert '"event": "StudyEnded"' in (tmp_path / "events.jsonl").read_text()


def test_a_number_that_json_cannot_write_is_null(tmp_path):
    run = empty_run(tmp_path)
    ended = search_events(run)[4]
    trial = replace(ended.trial, values={"accuracy": float("nan")})
    assert plain_event(TrialEnded(run, trial))["trial"]["values"] == {"accuracy": None}
    assert plain_event(Ready(run, True, 2)) == {"event": "Ready", "resumed": True, "workers": 2}
