"""Scores read from a table of finished trainings: a tabular benchmark, or what you have trained already."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pandas
import pydantic
from pydantic import Field

from kdnas.core.arch import Arch
from kdnas.core.objective import Quantity, unsound
from kdnas.costs import COSTS
from kdnas.errors import ConfigError, DataError, Problem, TrialError
from kdnas.record.lock import DataDescription, Findings
from kdnas.record.records import Result
from kdnas.workshop.evaluators import EVALUATORS, Evaluator, EvaluatorContext, names
from kdnas.workshop.jobs import Job

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


class Column(pydantic.BaseModel):
    """Where a quantity stands: its column, or several of independent trainings, and the factor to kdnas's unit."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    column: str | tuple[str, ...]
    scale: float = 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns; the first is the one that a search is given."""
        return (self.column,) if isinstance(self.column, str) else self.column


class Shorter(Column):
    """The score after a shorter training, of `epochs`."""

    epochs: Annotated[int, Field(ge=1)]


@EVALUATORS.register
class Table(Evaluator):
    """Looks students up in a CSV (.csv, .csv.gz) or JSON file: no training, so samplers can be raced in minutes.

    A row is found by its key: `key: "{stage1}{stage2}"` is filled with the arch's choices and compared with the keys of
    the JSON object, or with the CSV's `key_columns`, joined by commas. The other quantities than the score,
    which is accuracy or another that the study's objectives name, are known without a trial. The study's
    `training.epochs` must be one of those that the table has.

    Args:
        context: The study.
        file: The table, relative to the data root.
        key: How an arch spells its key.
        values: The column of each quantity, such as `accuracy: {column: [run1, run2], scale: 0.01}`. Inner keys and
            list items of a JSON file go by dots: `test_acc.0`. The further columns of the score are its repeats.
        full_epochs: The epochs of the trainings in `values`.
        key_columns: The columns that hold the key in a CSV file.
        shorter: Scores of shorter trainings.
        chance: The score that is worth nothing; the worst of the table by default.
    """

    def __init__(
        self,
        context: EvaluatorContext,
        *,
        file: str,
        key: str,
        values: dict[str, Column],
        full_epochs: Annotated[int, Field(ge=1)],
        key_columns: tuple[str, ...] = (),
        shorter: tuple[Shorter, ...] = (),
        chance: float | None = None,
    ):
        super().__init__(context)
        score = context.config.score
        self._key = key
        self._values = values
        self._path = context.data_root / Path(file).expanduser()
        stated = context.config.costs
        known = [score.name, *COSTS.names(), *(name for name in stated if "type" in stated[name])]
        problems = [
            Problem(f"evaluator.values.{name}", f"no quantity is called {name!r}", ", ".join(known))
            for name in values
            if name not in known
        ]
        if score.name not in values:
            problems.append(Problem("evaluator.values", f"must name the column of {score.name}"))
        if chance is not None and score.is_fraction and not 0.0 <= chance < 1.0:
            problems.append(Problem("evaluator.chance", f"must be at least 0 and below 1, got {chance:g}"))
        if problems:
            raise ConfigError(problems)
        self._scores = {full_epochs: values[score.name], **{column.epochs: column for column in shorter}}
        self.lengths = tuple(sorted(self._scores))
        if problems := self._without_scores():
            raise ConfigError(problems)
        self.repeats = len(values[score.name].columns)
        self._rows = _read(self._path, key_columns, [*values.values(), *shorter])
        for name, source in [*values.items(), *((score.name, column) for column in shorter)]:
            for place in source.columns:
                found = self._rows[place] * source.scale
                if wrong := unsound(name, found.min()) or unsound(name, found.max()):
                    allowed = "scale: 0.01 where it is in percent" if name == score.name and score.is_fraction else ""
                    raise DataError(Problem(str(self._path), f"column {place}: {wrong}", allowed))
        first = values[score.name]
        scores = self._rows[first.columns[0]] * first.scale
        worst = scores.min() if score.direction == "maximize" else scores.max()
        self._worst = float(worst) if chance is None else chance

    def _without_scores(self) -> list[Problem]:
        """Return a problem for each setting that asks for trainings of other lengths than the table has."""
        config = self.context.config
        scored = {one.epochs for one in config.fidelities}
        asked = {"rungs" if config.rungs else "training.epochs": scored}
        asked["final.epochs"] = {config.final_fidelity.epochs} - scored
        return [
            Problem(
                where,
                f"the table has no {config.score.name} after {', '.join(map(str, sorted(missing)))} epochs",
                ", ".join(map(str, sorted(self._scores))),
            )
            for where, epochs in asked.items()
            if (missing := epochs - self._scores.keys())
        ]

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """The score, and the other quantities of the table as known without a trial."""
        config = self.context.config
        costs = [COSTS.get(config.cost(name).type).quantity for name in self._values if name != config.score.name]
        return names([config.score, *(dataclasses.replace(cost, kind="cheap") for cost in costs)])

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the file's content and of how it is read."""
        digest = hashlib.sha256(self._path.read_bytes())
        digest.update(json.dumps(self.context.config.evaluator.options, sort_keys=True, default=str).encode())
        return {"table": digest.hexdigest()[:16]}

    @property
    def description(self) -> dict[str, str]:
        """The table."""
        return {"table": f"{self._path}: {len(self._rows):,} rows"}

    def price(self, arch: Arch) -> dict[str, float]:
        """Return everything but the score. Raises DataError where the table has no such arch."""
        row, score = self._row(arch), self.context.config.score.name
        return {name: row[column.columns[0]] * column.scale for name, column in self._values.items() if name != score}

    def facts(self) -> Findings:
        """Return what the study states, and the worst score of the table."""
        return Findings(self._worst, DataDescription(self._path.name))

    def __call__(self, job: Job) -> Result:
        """Look the job's arch up. Raises TrialError where the table has no score after so many epochs."""
        score = self.context.config.score.name
        column = self._scores.get(job.fidelity.epochs)
        if column is None:
            known = ", ".join(map(str, sorted(self._scores)))
            raise TrialError(f"the table has no {score} after {job.fidelity.epochs} epochs (it has: {known})")
        columns = column.columns
        found = self._row(job.arch)[columns[(job.repeat or 0) % len(columns)]] * column.scale
        return Result(self.price(job.arch) | {score: found})

    @cached_property
    def _by_key(self) -> dict[str, dict[str, float]]:
        return dict(zip(self._rows.index, self._rows.to_dict("records"), strict=True))

    def _row(self, arch: Arch) -> dict[str, float]:
        choices = arch.choices
        try:
            key = _PLACEHOLDER.sub(lambda match: str(choices[match[1]]), self._key)
        except KeyError as error:
            raise ConfigError(
                Problem("evaluator.key", f"{arch.canonical_json} has no choice {error}", ", ".join(choices))
            ) from None
        if key not in self._by_key:
            raise DataError(Problem(str(self._path), f"has no row for {arch.canonical_json} (its key is {key!r})"))
        return self._by_key[key]


def _read(path: Path, key_columns: tuple[str, ...], columns: list[Column]) -> pandas.DataFrame:
    """Return the numbers of the named columns, indexed by key. Raises DataError, ConfigError."""
    if not path.is_file():
        raise DataError(Problem("evaluator.file", f"there is no file {path}"))
    try:
        if path.name.endswith(".json"):
            frame = pandas.DataFrame.from_dict(
                {str(key): _flat(row) for key, row in json.loads(path.read_text(encoding="utf-8")).items()},
                orient="index",
            )
        else:
            frame = pandas.read_csv(path, dtype=dict.fromkeys(key_columns, str))
            frame.index = pandas.Index(frame[list(key_columns)].agg(",".join, axis=1))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            Problem(str(path), f"cannot be read as a table: {' '.join(str(error).split())[:200]}")
        ) from None
    wanted = list(dict.fromkeys(name for column in columns for name in column.columns))
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise ConfigError(
            Problem("evaluator.values", f"{path} has no column {name!r}", ", ".join(map(str, frame.columns)))
            for name in missing
        )
    numbers = frame[wanted].apply(pandas.to_numeric, errors="coerce")
    if numbers.isna().any(axis=None) or frame.index.has_duplicates:
        bad = "a cell that is no number" if numbers.isna().any(axis=None) else "a key that stands twice"
        raise DataError(Problem(str(path), f"has {bad}"))
    return numbers


def _flat(row: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one level, keys joined by dots."""
    pairs = row.items() if isinstance(row, dict) else enumerate(row)
    result: dict[str, Any] = {}
    for key, value in pairs:
        name = f"{prefix}{key}"
        result |= _flat(value, f"{name}.") if isinstance(value, dict | list) else {name: value}
    return result
