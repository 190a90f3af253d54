"""kdnas from Python: the same searches, runs and exports as on the command line, for scripts and notebooks.

import kdnas

run = kdnas.search("studies/digits", trials=8)
run.front                          # a DataFrame, one student a row
student = run.student("best")      # a torch module
run.export("best", "student", formats=["onnx"])
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdnas.core.pick import DEFAULT_PICK
from kdnas.core.words import command_line
from kdnas.errors import ConfigError, Problem
from kdnas.record.lock import read_code_settings
from kdnas.record.records import FrontMember, RunRecord
from kdnas.record.run_folder import LOCK_FILE
from kdnas.record.started_study import read_study, run_folder
from kdnas.study.config import StudyConfig
from kdnas.study.loading import LoadedStudy, study_of
from kdnas.study.yaml_lines import YamlDocument
from kdnas.trust import strange_code

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from kdnas.controller.events import Event
    from kdnas.core.block_library import Solved


class Study:
    """A study built in code, section by section as in study.yaml, checked when it is made.

        kdnas.Study(name="flowers", data={"type": "image_folder", "path": "flowers"}, teacher=..., space="cifar_resnet")

    Args:
        folder: What paths in the study, such as a space's own file, are relative to.
        sections: The keys of study.yaml. `space` may be the keys of a space file themselves.

    Raises:
        ConfigError: With everything that is wrong.
    """

    def __init__(self, *, folder: str | Path = ".", **sections: Any):
        self._folder = Path(folder)
        self._document = YamlDocument("Study", sections, {})
        self._loaded = study_of(self._document, self._folder)

    @property
    def config(self) -> StudyConfig:
        """The study with every default resolved."""
        return self._loaded.config

    def loaded(self, settings: Mapping[str, Any] | None = None) -> LoadedStudy:
        """Return the study with its space, `settings` changed by dotted key. Raises ConfigError."""
        return study_of(self._document, self._folder, _spelled(settings)) if settings else self._loaded

    def __repr__(self) -> str:
        return f"Study({self.config.name!r})"


class Run:
    """A run folder: what a search has found there so far. `kdnas.search` and `kdnas.load_run` return it."""

    def __init__(self, record: RunRecord, data_root: str | Path | None = None):
        if not isinstance(record, RunRecord):
            raise ConfigError(Problem("Run", f"takes a record, got {record!r}", f"kdnas.load_run({str(record)!r})"))
        self.record = record
        """The run as typed records: every trial, the teacher, the objectives."""
        self._data_root = data_root

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.record.folder

    @property
    def finished(self) -> str:
        """Why the search ended; empty while it has not."""
        return self.record.finished

    @cached_property
    def front(self) -> pd.DataFrame:
        """The Pareto front, one student a row, as in front.csv; a score such as accuracy is a fraction."""
        from kdnas.report.tables import front_table

        return front_table(self.record)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Every trial, one a row, as in trials.csv."""
        from kdnas.report.tables import trials_table

        return trials_table(self.record)

    def pick(self, pick: str = DEFAULT_PICK) -> FrontMember:
        """Return the record of the student that `pick` means: `best`, `teacher-1`, `macs<=5e6`, an arch_id ...

        Raises ConfigError where it means nothing or nobody.
        """
        from kdnas.record.front import pick as pick_member

        return pick_member(self.record, pick)

    def student(self, pick: str = DEFAULT_PICK) -> nn.Module:
        """Return a retrained student as a module in eval mode, on the CPU.

        It takes plain samples, such as images [B, C, H, W] as floats in 0..255, its normalisation inside, and returns
        logits [B, K], or [B, T, V]; class k is `record.class_names[k]`. Raises ConfigError where the student was not
        retrained, RunFolderError where its weights are not there any more.
        """
        from kdnas.workshop import opening
        from kdnas.workshop.afterwards import load_student

        root = opening.data_root(None if self._data_root is None else Path(self._data_root))
        return load_student(self.record, self.pick(pick), data_root=root)

    def export(
        self,
        pick: str = DEFAULT_PICK,
        out: str | Path = "student",
        *,
        formats: Sequence[str] | None = None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> list[Path]:
        """Write a student to the folder `out` and return the files. `formats` None: every one that works here.

        Raises ConfigError, DataError, RunFolderError on bad input, ExportError where a format does not reproduce the
        student's outputs; nothing is written then.
        """
        from kdnas.plan.exporting import check_formats, export_student
        from kdnas.workshop import opening

        if formats is not None:
            check_formats(formats)
        root = opening.data_root(None if self._data_root is None else Path(self._data_root))
        return export_student(self.record, self.pick(pick), formats, Path(out), data_root=root, notify=notify)

    def solve(self, *bounds: str, count: int = 16) -> tuple[Solved, ...]:
        """Return the students that the run's block library predicts to lose least within `bounds`, the cheapest first.

        For runs of `sampler: blocks`; nothing is trained. `bounds` are spelled as constraints, such as `macs<=30%` of
        the teacher's; up to `count` budgets below the first are solved. Raises ConfigError where nobody is within them,
        RunFolderError where the run has no library.
        """
        from kdnas.workshop.block_library import solve

        return solve(self.record, bounds, count=count)

    def report(self) -> Path:
        """Write report.html and its tables from the record, and return the page."""
        from kdnas.report.page import write_report

        return write_report(self.record)[0]

    def __repr__(self) -> str:
        state = self.finished or "not finished"
        return f"<kdnas run {self.record.config.name!r} in {self.folder}: {len(self.record.trials)} trials, {state}>"

    def _repr_html_(self) -> str:
        """The front as a notebook shows it: its figure and its table."""
        import pandas as pd

        from kdnas.report.picture import front_svg
        from kdnas.report.tables import front_of_page

        table = front_of_page(self.record)
        texts = [[cell.text for cell in row] for row in table.rows]
        shown = pd.DataFrame(texts, columns=[column.heading for column in table.columns])
        return f"{front_svg(self.record)}{shown.to_html(index=False, escape=True)}"


def search(
    study: str | Path | Study,
    *,
    out: str | Path | None = None,
    trials: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    settings: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    observe: Callable[[Event], None] = lambda event: None,
) -> Run:
    """Search for the students of a study: train, score, retrain the front, report, export. Again: continue.

    Args:
        study: A folder with a study.yaml, a YAML file, a run folder, or a `Study`.
        out: The run folder; by default runs/<the study's name>.
        trials: Scores of students (`budget.trials`).
        workers: Worker processes (`executor.workers`).
        device: auto, cpu or cuda.
        settings: Other settings to change, by dotted key: `{"training.epochs": 10}`.
        data_root: Where data sets lie; by default KDNAS_DATA, else ./data.
        observe: Called with every event (`kdnas.controller.events`): notes, trials begun and ended, retrainings. What
            it raises ends the search, which the same call continues.

    Returns:
        The run, finished or as far as its budget goes.

    Raises:
        InputError: Where study, data, teacher or run folder are wrong; nothing has been trained then.
        RunError: Where every trial failed.
    """
    from kdnas.session import search_study
    from kdnas.workshop import opening

    changes = dict(settings or {})
    for key, value in (("budget.trials", trials), ("executor.workers", workers), ("device", device)):
        if value is not None:
            changes[key] = value
    root = opening.data_root(None if data_root is None else Path(data_root)).resolve()
    continued = None
    if isinstance(study, Study):
        loaded = study.loaded(changes)
    else:
        continued = run_folder(Path(study))
        if continued is not None:
            _refuse_strange_code(continued, root)
        loaded = read_study(Path(study), _spelled(changes))
    folder = (Path(out) if out is not None else continued or Path("runs") / loaded.config.name).resolve()
    return Run(search_study(loaded, folder, data_root=root, observe=observe), data_root)


def load_run(folder: str | Path, *, data_root: str | Path | None = None) -> Run:
    """Return the run in `folder`; `data_root` is where its data lies, for exports. Raises RunFolderError."""
    from kdnas.record.storage import load_run as load_record

    return Run(load_record(Path(folder)), data_root)


def _spelled(settings: Mapping[str, Any] | None) -> list[str]:
    """Return settings as `--set` takes them: JSON is YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in (settings or {}).items()]


def _refuse_strange_code(run: Path, data_root: Path) -> None:
    """Raise ConfigError where the run folder names code that no study of this user's has named, and he trusts not."""
    strange = strange_code(run / LOCK_FILE, read_code_settings(run), data_root)
    if strange:
        listed = "; ".join(code.in_words(data_root) for code in strange)
        how = command_line("kdnas", "search", run, "--trust-code")
        what = f"names code that no study of yours on this machine named, so it does not run: {listed}"
        raise ConfigError(Problem(str(run / LOCK_FILE), f"{what}; where you trust it, once: {how}"))
