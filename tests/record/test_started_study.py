"""A run folder is the study that it was started with."""

from __future__ import annotations

import scored_study

from kdnas.record.run_folder import read_lock, space_record
from kdnas.record.started_study import read_study
from kdnas.record.storage import load_run
from kdnas.study.loading import load_study


def test_a_run_folder_alone_is_its_whole_study(scored_search, tmp_path):
    study = scored_study.write(tmp_path, tune={"training.learning_rate": {"low": 0.01, "high": 0.2, "log": True}})
    assert scored_search(study)[0] == 0
    run, before = tmp_path / "run", load_study(study)
    (study / "study.yaml").unlink()
    (study / "space.yaml").unlink()
    for path in (run, run / "study.lock.yaml"):
        again = read_study(path, ["budget.trials=7"])
        assert space_record(again.space) == space_record(before.space)
        assert again.config.budget.trials == 7
        plain, locked = again.config.model_dump(mode="json"), read_lock(run)["config"]
        assert {**plain, "budget": None} == {**locked, "budget": None}
    assert "nothing new" in scored_search(run)[1]
    assert scored_search(run, "--trials", 5)[0] == 0
    assert len(load_run(run).trials) == 5
    code, _, stderr = scored_search(run, "--set", "training.epochs=9")
    assert (code, "training.epochs: 1 -> 9" in stderr) == (2, True)
    code, _, stderr = scored_search(run, "--set", "space=other.yaml")
    assert (code, "other.yaml" in stderr) == (2, True)
    code, _, stderr = scored_search(run, "--set", "budget.trails=9")
    assert (code, "did you mean 'trials'" in stderr) == (2, True)
