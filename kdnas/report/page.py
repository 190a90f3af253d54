"""One self-contained HTML page of a run: works offline, asks nothing of any network."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import pandas as pd
import plotly.offline

import kdnas
from kdnas.report import summary
from kdnas.report.audit import audit_figure, audit_html
from kdnas.report.figures import accuracy_figure, cost_names, hypervolume_figure, importance_figure
from kdnas.report.importance import importance
from kdnas.report.parallel import parallel_figure
from kdnas.report.schedules import found_schedules, schedule_figures, schedules_html
from kdnas.report.style import Figure
from kdnas.report.tables import front_table, trials_table
from kdnas.report.time_spent import seconds_by_phase, time_figure
from kdnas.report.wording import label, shown, shown_interval
from kdnas.study.audit_result import AuditResult, audit_result
from kdnas.study.front import front, hypervolume_over_time, recommended
from kdnas.study.records import FrontMember, RunRecord

_TEXT_COLUMNS = ("arch_id", "fidelity_weights", "state", "reason", "arch", "indistinguishable_from")
_CODE_COLUMNS = ("arch_id", "arch", "indistinguishable_from")
_LONG_COLUMNS = ("reason", "arch", "indistinguishable_from")
# The browser itself refuses every request: nothing but what stands in the page may be used. Plotly compiles
# functions for some traces, hence unsafe-eval; the live page may ask its own server for the version.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src {connect}; base-uri 'none'; form-action 'none'"
)


def page(run: RunRecord, *, version: str = "") -> str:
    """Return the report of `run` as one HTML document.

    With a `version` the page is live: it asks `/version` of its own server and reloads when the answer differs.
    """
    drawings = figures(run)
    audit = audit_result(run)
    audit_drawing = [audit_figure(run, audit)] if audit is not None and audit.scopes else []
    schedules = found_schedules(run)
    schedule_drawings = schedule_figures(schedules)
    everything = [*drawings, *audit_drawing, *itertools.chain(*schedule_drawings)]
    policy = _POLICY.format(connect="'self'" if version else "'none'")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(run.config.name)} · kdnas</title>\n<style>\n{_resource('page.css')}</style>\n</head>",
            f'<body data-version="{_text(version)}">',
            _header(run),
            "<main>",
            _trust(run),
            _audit(run, audit, audit_drawing),
            _figures(drawings, run),
            schedules_html(run, schedules, ["".join(map(_figure, drawn)) for drawn in schedule_drawings]),
            _tables(run),
            _costs_and_failures(run),
            "</main>",
            _footer(run),
            *(_data_script(figure) for figure in everything),
            f"<script>{plotly.offline.get_plotlyjs()}</script>" if everything else "",
            f"<script>\n{_resource('page.js')}</script>\n</body>\n</html>\n",
        ]
    )


def figures(run: RunRecord) -> list[Figure]:
    """Return every figure there is data for; none before the first student is scored."""
    if not any(trial.state == "complete" for trial in run.trials):
        return []
    drawings = [accuracy_figure(run, name) for name in cost_names(run)]
    drawings.append(parallel_figure(run))
    if hypervolume_over_time(run):
        drawings += [hypervolume_figure(run, "trials"), hypervolume_figure(run, "time")]
    shares = importance(run)
    if shares.shares:
        drawings.append(importance_figure(run, shares))
    if seconds_by_phase(run):
        drawings.append(time_figure(run))
    return drawings


def _header(run: RunRecord) -> str:
    cards = [_card(title, member, sentence) for title, member, sentence in summary.highlights(run)]
    if run.teacher is not None:
        notes = "".join(f"<p class=note>{_text(note)}</p>" for note in run.teacher.notes)
        cards.append(
            f'<div class="card teacher"><h3>Teacher</h3><div class="big">{_text(run.teacher.name)}</div>'
            f"{_definitions(summary.teacher_numbers(run))}{notes}</div>"
        )
    nothing = "" if front(run) else _no_front(run)
    data = "".join(f"<p class=note>Data: {_text(note)}.</p>\n" for note in run.data_notes)
    return (
        f"<header>\n<h1>{_text(run.config.name)}</h1>\n<p class='lead'>{_text(summary.what_was_searched(run))}</p>\n"
        f"<p class='lead'>{_text(summary.progress(run))}</p>\n{nothing}{data}"
        f"<div class='cards'>{''.join(cards)}</div>\n</header>"
    )


def _no_front(run: RunRecord) -> str:
    complete = sum(trial.state == "complete" for trial in run.trials)
    if complete:
        text = "No student that was scored meets every constraint with its measured values, so there is no front."
    else:
        text = "No student has been scored yet, so there is no front and nothing to draw."
    return f'<p class="notice" role="status">{text}</p>\n'


def _card(title: str, member: FrontMember, sentence: str) -> str:
    accuracy, test = member.values.get("accuracy"), member.test_accuracy
    pairs = [("student", member.trial.arch.arch_id), ("trial", str(member.trial.number))]
    if test is not None:
        pairs.append(("validation accuracy", shown_interval("accuracy", accuracy, member.accuracy_ci95)))
        big = f"{shown_interval('accuracy', test, member.test_accuracy_ci95)} test accuracy"
    else:
        big = f"{shown('accuracy', accuracy)} validation accuracy"
    against = f'<div class="against">{_text(sentence)}</div>' if sentence else ""
    pairs += summary.quantity_pairs(member.values)
    head = f'<h3>{_text(title)}</h3><div class="big">{_text(big)}</div>'
    return f'<div class="card">{head}{against}{_definitions(pairs)}</div>'


def _trust(run: RunRecord) -> str:
    items = "".join(f"<li>{_text(sentence)}</li>" for sentence in summary.trust(run))
    return f"<section><h2>How far to trust this</h2><ul>{items}</ul></section>"


def _audit(run: RunRecord, result: AuditResult | None, drawing: Sequence[Figure]) -> str:
    if result is None and not any(trial.state == "complete" for trial in run.trials):
        return ""
    shown_drawing = "".join(_figure(figure) for figure in drawing)
    return audit_html(run, result, f'<div class="figures">{shown_drawing}</div>' if drawing else "")


def _figures(drawings: Sequence[Figure], run: RunRecord) -> str:
    if not drawings:
        return ""
    parts = [_figure(figure) for figure in drawings]
    missing = "" if any(figure.name == "importance" for figure in drawings) else importance(run).explanation
    note = f'<p class="lead">Importance of each choice: {_text(missing)}</p>' if missing else ""
    return f'<section><h2>Figures</h2><div class="figures">{"".join(parts)}</div>{note}</section>'


def _figure(figure: Figure) -> str:
    return (
        f'<figure id="{_text(figure.name)}"{" class=wide" if figure.wide else ""}><h3>{_text(figure.title)}</h3>'
        f'<div class="drawing" role="img" aria-label="{_text(figure.title)}">'
        f'<div data-figure="data-{_text(figure.name)}" '
        f'style="height:{int(figure.drawing.layout.height)}px"></div></div>'
        f"<figcaption>{_text(figure.caption)}</figcaption></figure>"
    )


def _tables(run: RunRecord) -> str:
    if not run.trials:
        return ""
    members = front(run)
    chosen = recommended(run)
    marked = {chosen.member.trial.number} if chosen is not None else set()
    hint = '<p class="lead">The numbers of front.csv and trials.csv. A click on a column’s name sorts by it.</p>'
    parts = []
    if members:
        test = f'<p class="lead">{_text(f"{summary.near_chance(run)} {summary.distinguishing(run)}".strip())}</p>'
        parts.append(f"<h2>The front</h2>{hint}" + _table(front_table(run), "Students of the front", marked) + test)
    parts.append("<h2>All trials</h2>" + _table(trials_table(run), "All trials with the search’s scores", set()))
    return f"<section>{''.join(parts)}</section>"


def _table(table: pd.DataFrame, name: str, chosen: set[int]) -> str:
    heads = "".join(
        f"<th scope='col'{' class=text' if column in _TEXT_COLUMNS else ''}>"
        f"<button type='button'>{_text(_heading(str(column)))}</button></th>"
        for column in table.columns
    )
    rows = []
    for record in table.to_dict("records"):
        marked = " class=chosen" if record["trial"] in chosen else ""
        cells = "".join(_cell(str(column), value) for column, value in record.items())
        rows.append(f"<tr{marked}>{cells}</tr>")
    note = '<p class="lead">The recommended student is tinted green.</p>' if chosen else ""
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{_text(name)}"><table class="sortable">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _heading(column: str) -> str:
    if column.endswith("_ci95"):
        return f"± 95 % {label(column.removesuffix('_ci95'))}"
    names = {
        "arch_id": "student",
        "fidelity_epochs": "epochs",
        "fidelity_data_fraction": "data fraction",
        "fidelity_resolution_fraction": "resolution fraction",
        "fidelity_weights": "weights",
        "macs": "MACs",
        "indistinguishable_from": "accuracy not distinguishable from",
    }
    return names.get(column) or (column if column.endswith(("_ms", "_bytes", "_mj")) else column.replace("_", " "))


def _cell(column: str, value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return '<td data-value="">–</td>'
    if column in _TEXT_COLUMNS:
        wide = " long" if column in _LONG_COLUMNS and len(str(value)) > 30 else ""
        content = f"<code>{_text(value)}</code>" if column in _CODE_COLUMNS else _text(value)
        return f'<td class="text{wide}" data-value="{_text(value)}">{content}</td>'
    # Accuracies keep four digits so that they can be compared with the files; counts are written out.
    if isinstance(value, int) or float(value).is_integer():
        text = f"{int(value):,}".replace(",", "\u202f")
    else:
        text = f"{value:.4f}" if "accuracy" in column else f"{value:.4g}"
    return f'<td data-value="{value!r}">{text}</td>'


def _costs_and_failures(run: RunRecord) -> str:
    if not run.trials:
        return ""
    parts = [f"<h2>What the search cost</h2><div class=costs>{_definitions(summary.costs(run))}</div>"]
    groups = summary.failures(run)
    if groups:
        items = "".join(
            f"<li><b>{len(numbers)} × {_text(state)}</b>: {_text(reason)} <small>({_numbered(numbers)})</small></li>"
            for state, reason, numbers in groups
        )
        parts.append(f"<h2>Trials without a score</h2><ul>{items}</ul>")
    return f"<section>{''.join(parts)}</section>"


def _numbered(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:12]))
    return f"trial{'s' if len(numbers) > 1 else ''} {listed}{', …' if len(numbers) > 12 else ''}"


def _footer(run: RunRecord) -> str:
    state = "" if run.finished or not run.trials else " It is a snapshot of a search that has not ended."
    return f"<footer>Written by kdnas {_text(kdnas.__version__)} from {_text(run.folder)}.{state}</footer>"


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in pairs) + "</dl>"


def _data_script(figure: Figure) -> str:
    # In a script element only "</" and "<!--" could end or change it; an escaped "<" is the same JSON string.
    text = str(figure.drawing.to_json()).replace("<", "\\u003c")
    return f'<script type="application/json" id="data-{_text(figure.name)}">{text}</script>'


def _resource(name: str) -> str:
    return resources.files("kdnas.report").joinpath(name).read_text(encoding="utf-8")


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
