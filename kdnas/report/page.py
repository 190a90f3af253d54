"""A run's report: one self-contained HTML page that works offline and asks nothing of any network, and its files."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import plotly.offline

from kdnas import atomic
from kdnas.audit.result import AuditResult, audit_result
from kdnas.errors import RunFolderError
from kdnas.faults import reach
from kdnas.plan.training_folder import full_trainings
from kdnas.record.front import front
from kdnas.record.products import note_products
from kdnas.record.records import FrontMember, RunRecord
from kdnas.report import summary
from kdnas.report.architecture import architecture_drawing, architecture_in_words
from kdnas.report.audit import audit_figure, audit_html
from kdnas.report.cut_figure import cut_figure
from kdnas.report.figures import (
    Figure,
    cost_names,
    growth,
    hypervolume_figure,
    importance_figure,
    score_figure,
    seconds_by_phase,
    time_figure,
)
from kdnas.report.parallel import parallel_figure
from kdnas.report.picture import front_picture
from kdnas.report.plans import draw_plans, find_plans, plans_html
from kdnas.report.searched import importance
from kdnas.report.tables import (
    front_of_page,
    front_table,
    full_trainings_table,
    further_scores_table,
    trials_of_page,
    trials_table,
    write_csv,
)
from kdnas.report.wording import front_score, in_html, label, shown_interval
from kdnas.version import __version__

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
    plans = find_plans(run)
    plan_drawings = draw_plans(plans, run.score)
    everything = [*drawings, *audit_drawing, *itertools.chain(*plan_drawings)]
    policy = _POLICY.format(connect="'self'" if version else "'none'")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{in_html(run.config.name)} · kdnas</title>\n<style>\n{_resource('page.css')}</style>\n</head>",
            f'<body data-version="{in_html(version)}">',
            _header(run),
            "<main>",
            _trust(run),
            _audit(run, audit, audit_drawing),
            _figures(drawings, run),
            plans_html(run, plans, ["".join(map(_figure, drawn)) for drawn in plan_drawings]),
            _tables(run),
            _costs_and_failures(run),
            "</main>",
            _footer(run),
            *(_data_script(figure) for figure in everything),
            f"<script>{plotly.offline.get_plotlyjs()}</script>" if everything else "",
            f"<script>\n{_resource('page.js')}</script>\n</body>\n</html>\n",
        ]
    )


def write_report(run: RunRecord, folder: Path | None = None) -> tuple[Path, ...]:
    """Write report.html, front.csv, trials.csv and front.svg of `run` into `folder` (its own by default).

    Each file is whole or untouched. Returns the paths. Raises RunFolderError where the folder cannot be written.
    """
    folder = run.folder if folder is None else folder
    document = page(run)
    try:
        reach("report")
        write_csv(trials_table(run), folder / "trials.csv")
        write_csv(front_table(run), folder / "front.csv")
        front_picture(run, folder / "front.svg")
        atomic.write_text(folder / "report.html", document)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written: {error.strerror or error}") from error
    written = tuple(folder / name for name in ("report.html", "front.csv", "trials.csv", "front.svg"))
    if folder == run.folder:
        note_products(run, "report", written)
    return written


def figures(run: RunRecord) -> list[Figure]:
    """Return every figure there is data for; none before the first student is scored."""
    if not any(trial.state == "complete" for trial in run.trials):
        return []
    drawings = [score_figure(run, name) for name in cost_names(run)]
    drawings.append(parallel_figure(run))
    if growth(run):
        drawings += [hypervolume_figure(run, "trials"), hypervolume_figure(run, "time")]
    shares = importance(run)
    if shares.shares:
        drawings.append(importance_figure(run, shares))
    if seconds_by_phase(run):
        drawings.append(time_figure(run))
    if (cut := cut_figure(run)) is not None:
        drawings.append(cut)
    return drawings


def _header(run: RunRecord) -> str:
    cards = [_card(run, title, member, sentence) for title, member, sentence in summary.highlights(run)]
    for name, report in run.teachers.items():
        notes = "".join(f"<p class=note>{in_html(note)}</p>" for note in report.notes)
        title = f"Teacher {in_html(name)}" if len(run.teachers) > 1 else "Teacher"
        cards.append(
            f'<div class="card teacher"><h3>{title}</h3><div class="big">{in_html(report.name)}</div>'
            f"{_definitions(summary.teacher_numbers(run, report))}{notes}</div>"
        )
    nothing = "" if front(run) else _no_front(run)
    return (
        f"<header>\n<h1>{in_html(run.config.name)}</h1>\n"
        f"<p class='lead'>{in_html(summary.what_was_searched(run))}</p>\n"
        f"<p class='lead'>{in_html(summary.progress(run))}</p>\n{nothing}"
        f"<div class='cards'>{''.join(cards)}</div>\n</header>"
    )


def _no_front(run: RunRecord) -> str:
    complete = sum(trial.state == "complete" for trial in run.trials)
    if complete:
        text = "No student that was scored meets every constraint with its measured values, so there is no front."
    else:
        text = "No student has been scored yet, so there is no front and nothing to draw."
    return f'<p class="notice" role="status">{text}</p>\n'


def _card(run: RunRecord, title: str, member: FrontMember, sentence: str) -> str:
    score, name = run.score, label(run.score.name)
    value, test = member.values.get(score.name), member.test_score
    pairs = [("student", member.trial.arch.arch_id), ("trial", str(member.trial.number))]
    if test is not None:
        pairs.append((front_score(run), shown_interval(score, value, member.score_ci95)))
        big = f"test {name} {shown_interval(score, test, member.test_score_ci95)}"
    else:
        big = f"{front_score(run)} {shown_interval(score, value, None)}"
    big = big.replace(" %", "\u00a0%")  # which no line breaks
    against = f'<div class="against">{in_html(sentence)}</div>' if sentence else ""
    pairs += summary.cost_pairs(run, member.values)
    head = f'<h3>{in_html(title)}</h3><div class="big">{in_html(big)}</div>'
    arch = member.trial.arch
    what = f'{architecture_drawing(arch)}<p class="what">{in_html(architecture_in_words(arch))}</p>'
    return f'<div class="card">{head}{against}{what}{_definitions(pairs)}</div>'


def _trust(run: RunRecord) -> str:
    items = "".join(f"<li>{in_html(sentence)}</li>" for sentence in summary.trust(run))
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
    note = f'<p class="lead after">Importance of each choice: {in_html(missing)}</p>' if missing else ""
    return f'<section><h2>Figures</h2><div class="figures">{"".join(parts)}</div>{note}</section>'


def _figure(figure: Figure) -> str:
    return (
        f'<figure id="{in_html(figure.name)}"{" class=wide" if figure.wide else ""}><h3>{in_html(figure.title)}</h3>'
        f'<div class="drawing"{" tabindex=0" if figure.wide else ""} role="img" aria-label="{in_html(figure.title)}">'
        f'<div data-figure="data-{in_html(figure.name)}" '
        f'style="height:{int(figure.drawing.layout.height)}px"></div></div>'
        f"<figcaption>{in_html(figure.caption)}</figcaption></figure>"
    )


def _tables(run: RunRecord) -> str:
    if not run.trials:
        return ""
    percent = "Scores are in per cent here; front.csv and trials.csv hold the same numbers as fractions. "
    hint = f'<p class="lead">{percent if run.score.is_fraction else ""}Click on a column’s name to sort by it.</p>'
    parts = []
    if front(run):
        tinted = "The student at the top of this page is tinted green."
        lead = f"{tinted} {summary.near_chance(run)} {summary.distinguishing(run)}"
        parts.append(f'<h2>The front</h2>{hint}{front_of_page(run).html()}<p class="lead">{in_html(lead.strip())}</p>')
        further = further_scores_table(run)
        parts += [f"<h3>{in_html(further.name)}</h3>{further.html()}"] if further.rows else []
    parts.append(_full_trainings(run))
    parts.append(f"<h2>All trials</h2>{trials_of_page(run).html()}")
    return f"<section class=tables>{''.join(parts)}</section>"


def _full_trainings(run: RunRecord) -> str:
    found, troubles = full_trainings(run.folder)
    if not found and not troubles:
        return ""
    lead = '<p class="lead">One training each, by `kdnas train`; the test split was used once, at its end.</p>'
    table = lead + full_trainings_table(run, found).html() if found else ""
    return "<h2>Full trainings</h2>" + table + "".join(f'<p class="notice">{in_html(line)}</p>' for line in troubles)


def _costs_and_failures(run: RunRecord) -> str:
    if not run.trials:
        return ""
    parts = [f"<h2>What the search cost</h2><div class=costs>{_definitions(summary.costs(run))}</div>"]
    groups = summary.failures(run)
    if groups:
        items = "".join(
            f"<li><b>{len(numbers)} × {in_html(state)}</b>: {in_html(reason)} "
            f"<small>({_numbered(numbers)})</small></li>"
            for state, reason, numbers in groups
        )
        parts.append(f"<h2>Trials without a score</h2><ul>{items}</ul>")
    return f"<section>{''.join(parts)}</section>"


def _numbered(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:12]))
    return f"trial{'s' if len(numbers) > 1 else ''} {listed}{', …' if len(numbers) > 12 else ''}"


def _footer(run: RunRecord) -> str:
    state = "" if run.finished or not run.trials else " It is a snapshot of a search that has not ended."
    return f"<footer>Written by kdnas {in_html(__version__)} from {in_html(run.folder)}.{state}</footer>"


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{in_html(name)}</dt><dd>{in_html(value)}</dd>" for name, value in pairs) + "</dl>"


def _data_script(figure: Figure) -> str:
    # In a script element only "</" and "<!--" could end or change it; an escaped "<" is the same JSON string.
    text = str(figure.drawing.to_json()).replace("<", "\\u003c")
    return f'<script type="application/json" id="data-{in_html(figure.name)}">{text}</script>'


def _resource(name: str) -> str:
    return resources.files("kdnas.report").joinpath(name).read_text(encoding="utf-8")
