"""A study whose scores a function of the user gives, and an executor without processes: a search in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kdnas.executors import Executor, Finished
from kdnas.executors._worker import answer
from kdnas.record.records import Result
from kdnas.workshop.jobs import Job

SCORE = """\
def score(choices, epochs, data_fraction, seed):
    return {"accuracy": 1 - 1 / (1 + choices["a"] + choices["b"])}

def price(choices):
    return {"macs": 1000 * (choices["a"] + choices["b"])}
"""


def write(parent: Path, *, score: str = SCORE, **sections: Any) -> Path:
    """Write the study to `parent`/scored and return that folder, which is its data root too."""
    folder = parent / "scored"
    folder.mkdir(parents=True)
    study = {
        "name": "scored",
        "evaluator": {"type": "module", "function": "score.py:score", "price": "score.py:price"},
        "space": "space.yaml",
        "objectives": ["accuracy", "macs"],
        "training": {"epochs": 1},
        "sampler": "random",
        "executor": {"type": "local", "workers": 1},
        "budget": {"trials": 3},
        "final": {"seeds": 1, "max_students": 2},
        "export": {"formats": []},
        **sections,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    (folder / "space.yaml").write_text("choices:\n  a: {low: 1, high: 8}\n  b: {low: 1, high: 8}\n")
    (folder / "score.py").write_text(score)
    return folder


class Inline(Executor[Job, Result]):
    """Answers each job at once, in this process."""

    def __init__(self, make_evaluate: Any):
        super().__init__(make_evaluate)
        self._evaluate = make_evaluate()
        self._done: list[Finished[Result]] = []

    @property
    def free(self) -> int:
        """One place."""
        return 1 - len(self._done)

    @property
    def running(self) -> int:
        """The job that is answered and not told."""
        return len(self._done)

    def submit(self, key: str, job: Job, *, time_limit_s: float | None = None) -> None:
        """Answer `job`."""
        kind, content = answer(self._evaluate, job)
        assert kind != "broken", content
        self._done.append(Finished(key, **{"result" if kind == "result" else "failure": content}))

    def wait(self, timeout_s: float) -> list[Finished[Result]]:
        """Return what was answered."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Nothing to close."""
