"""A run's audit in words, as a table and as a figure: how well the search's scores rank its students."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from kdnas.audit.result import (
    SCORE,
    TARGET_TAU,
    AuditedStudent,
    AuditResult,
    LossAgreement,
    NeededFidelity,
    audit_result,
)
from kdnas.core.fidelity import Fidelity
from kdnas.core.interval import pooled_ci95
from kdnas.core.objective import Quantity
from kdnas.core.rank import Estimate
from kdnas.core.words import capitalised, command_line, counted
from kdnas.record.records import RunRecord
from kdnas.report.figures import FRONT, Figure, score_axis, styled
from kdnas.report.study_file import write_study
from kdnas.report.table import Table
from kdnas.report.wording import duration, in_html, label, scaled, shown, shown_interval
from kdnas.study.losses import loss_name
from kdnas.training.recipe import Distillation

_RANKERS = {SCORE: "search score", "params": "params alone", "macs": "MACs alone"}
UNKNOWN = "not known"


def shown_tau(estimate: Estimate | None) -> str:
    """Return "0.61 [0.41, 0.77]", the interval at 95 %."""
    if estimate is None:
        return UNKNOWN
    return f"{_rounded(estimate.value)} [{_rounded(estimate.low)}, {_rounded(estimate.high)}]"


def tables(result: AuditResult, own: str) -> list[Table]:
    """Return what the audit found as tables; `own` is what to call the study's loss."""
    found = [_tau_table(result), _rung_table(result), _loss_table(result, own)]
    return [table for table in found if table is not None]


def _tau_table(result: AuditResult) -> Table | None:
    """Return the taus against longer training: where, what ranked, how many were compared."""
    if not result.scopes:
        return None
    rankers = list(result.scopes[0].taus)
    rows = []
    for scope in result.scopes:
        some = next((estimate for estimate in scope.taus.values() if estimate is not None), None)
        compared = f"{some.items} ({some.pairs})" if some else "too few"
        rows.append([scope.name, *(shown_tau(scope.taus[ranker]) for ranker in rankers), compared])
    headings = ["Kendall tau", *(_RANKERS[ranker] for ranker in rankers), "n"]
    return Table.of_texts("Rank agreement with longer training", headings, rows)


def _rung_table(result: AuditResult) -> Table | None:
    """Return each rung's taus against longer training; None where there is one kind of score."""
    if not result.rungs:
        return None
    rankers = list(result.rungs[0].taus)
    rows = [
        [
            rung.fidelity.words,
            *(shown_tau(rung.taus[ranker]) for ranker in rankers),
            shown_tau(rung.gain),
            _students(rung.taus[SCORE]),
        ]
        for rung in result.rungs
    ]
    alone = [_RANKERS[ranker] for ranker in rankers[1:]]
    headings = ["score", "Kendall tau", *alone, "over params alone", "n"]
    return Table.of_texts("Rank agreement of every rung", headings, rows)


def _loss_table(result: AuditResult, own: str) -> Table | None:
    """Return the losses' taus; `own` is what to call the study's. None where no other was tried."""
    if not result.losses:
        return None
    rows = [
        [f"{own} (the study’s)", shown_tau(result.overall), shown_tau(result.forecast), "–", _students(result.overall)]
    ]
    rows += [
        [row.loss, shown_tau(row.tau), shown_tau(row.forecast), shown_tau(row.gain), _students(row.tau)]
        for row in result.losses
    ]
    alone = {name: tau for name, tau in result.scopes[0].taus.items() if name != SCORE}
    rows += [[_RANKERS[name], shown_tau(tau), "–", "–", _students(tau)] for name, tau in alone.items()]
    heads = ["brief loss", "Kendall tau", "with the costs", f"over {own}", "n"]
    return Table.of_texts("Rank agreement by loss", heads, rows)


def findings(run: RunRecord, result: AuditResult) -> list[str]:
    """Return what the audit found, one sentence each."""
    size = f"{len(result.students)} of {result.asked_students}"
    total = result.asked_students * result.asked_seeds
    sentences = []
    if result.trainings < total:
        sentences.append(
            f"The audit is not finished: {result.trainings} of {total} longer trainings are made, {size} students have "
            "one. `kdnas audit` with the same options continues it."
        )
    if not result.scopes:
        return [*sentences, "These are too few to measure how well the search’s scores rank."]
    split = " Both are on the validation split." if run.trains else ""
    sentences.append(
        f"{len(result.students)} students of the search, drawn over scores within bands of MACs and with members of "
        f"the front among them, were trained for {result.longer.words} with "
        f"{counted(result.asked_seeds, 'seed')}; {_most(result)} are of {result.brief.words} and one "
        f"seed.{split} Square brackets are 95 % intervals (bootstrap over the students)."
    )
    sentences.append(
        "Best quarter: by longer training. Equal MACs: only students of one band are compared, and those of a band "
        f"differ by at most {100 * result.tolerance:.0f} %. n: students (pairs compared)."
    )
    sentences += [verdict(result), *loss_verdict(run, result)]
    sentences += [*_ceiling(result), *_needed(result.needed, result.longer)]
    return sentences


def verdict(result: AuditResult) -> str:
    """Return how much better the search score ranks than the parameter count does, in one sentence."""
    baseline = result.baselines.get("params")
    if baseline is None or baseline.gain is None:
        return "Whether the search score ranks better than the parameter count is not known."
    gain, partial = baseline.gain, baseline.partial
    difference = f"difference in tau {shown_tau(gain)}"
    held = f"partial tau with the parameter count held fixed {shown_tau(partial)}"
    adds = partial is not None and partial.low > 0
    if gain.low > 0:
        return f"The search score ranks better than the parameter count alone ({difference}; {held})."
    compared = (
        "ranks worse than the parameter count alone"
        if gain.high < 0
        else "is not shown to rank better than the parameter count alone"
    )
    if adds:
        return f"The search score {compared} ({difference}), but it adds to that count ({held})."
    return (
        f"The search score {compared} ({difference}), and adds nothing to it that {gain.items} students could show "
        f"({held})."
    )


def brief_loss(result: AuditResult) -> LossAgreement | None:
    """Return the brief loss, of those tried beside the study's own, that ranks best; None where its own does."""
    best, own = result.losses[0] if result.losses else None, result.overall
    return None if best is None or best.tau is None or (own is not None and own.value >= best.tau.value) else best


def loss_verdict(run: RunRecord, result: AuditResult) -> list[str]:
    """Return which brief loss ranks as longer training does best, whether that is beyond noise, and what it cost."""
    if not result.losses or run.audit is None:
        return []
    own, best = loss_name(run.config.distillation), brief_loss(result)
    names = {row.loss for row in result.losses}
    brief = [training for training in run.audit.trainings if training.loss in names]
    longer = [training for training in run.audit.trainings if not training.loss]
    spent, besides = (sum(training.train_seconds for training in made) for made in (brief, longer))
    if best is None:
        found = f"No brief loss of {len(names) + 1} ranks better than the study’s, {own}."
    else:
        sure = best.gain is not None and best.gain.low > 0
        gained = "" if best.gain is None else f", its tau larger by {shown_tau(best.gain)} than the study’s {own}’s"
        found = f"Of {len(names) + 1} brief losses {best.loss} ranks best{gained}: "
        found += "beyond noise." if sure else "not beyond noise, and as the best of several it looks better than it is."
    cost = f"That took {counted(len(brief), 'brief training')} ({duration(spent)})"
    cost += f" beside {counted(len(longer), 'longer one')} of the audit’s ({duration(besides)})." if longer else "."
    return [found, cost]


def write_brief_study(run: RunRecord, result: AuditResult, losses: Mapping[str, Distillation]) -> list[Path]:
    """Write the study whose search has the brief loss that ranks best, and whose finalists learn as before.

    Returns what was written, into the run's folder `audit`: nothing where the study's own loss ranks best, or the best
    is none of `losses`, by name.
    """
    best, config = brief_loss(result), run.config
    if best is None or best.loss not in losses:
        return []
    folder = run.folder / "audit"
    folder.mkdir(exist_ok=True)
    own, final = config.model_dump(mode="json", exclude_unset=True), config.final.distillation or config.distillation
    sections = {
        "distillation": losses[best.loss].model_dump(mode="json", exclude_unset=True),
        "tune": {name: asked for name, asked in own.get("tune", {}).items() if not name.startswith("distillation.")},
        "final": {**own.get("final", {}), "distillation": final.model_dump(mode="json")},
    }
    words = f"kdnas audit: the study with {best.loss} as the loss of its search; finalists learn as before"
    return write_study(folder, config, run.lock.space, sections, words)


def trust_line(run: RunRecord) -> str:
    """Return one line on how far the search's scores can be trusted to rank."""
    result = audit_result(run)
    if result is None:
        audit = command_line("kdnas", "audit", run.folder)
        return f"No audit was made, so how well the search’s scores rank is not known: {audit}"
    if result.overall is None:
        return findings(run, result)[0]
    gain = result.baselines["params"].gain if "params" in result.baselines else None
    line = (
        f"Audit of {len(result.students)} students: the search score ranks as {result.longer.words} do with "
        f"Kendall tau {shown_tau(result.overall)}"
    )
    if gain is None:
        return f"{line}."
    how = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "not shown to be better than"
    return f"{line}, {how} the parameter count alone with {shown_tau(result.scopes[0].taus['params'])}."


def audit_figure(run: RunRecord, result: AuditResult) -> Figure:
    """Return the search score against longer training, one point a student, with the taus as text."""
    students = result.students
    halves = pooled_ci95([list(student.longer.values()) for student in students])
    macs = [student.trial.values.get("macs", math.nan) for student in students]
    marker: dict[str, object] = {"size": 9, "color": FRONT, "line": {"color": "white", "width": 1}}
    if _has_macs(macs):
        marker |= {"color": np.log10(macs).tolist(), "colorscale": "Viridis", "colorbar": _macs_bar(macs)}
    score, name = run.score, label(run.score.name)
    drawing = go.Figure()
    drawing.add_scatter(
        x=[student.score for student in students], y=[student.mean for student in students], mode="markers",
        marker=marker, showlegend=False, hovertemplate="%{text}<extra></extra>",
        error_y={"type": "data", "array": [half or 0.0 for half in halves], "thickness": 1.2, "width": 3,
                 "color": "#8793a3"},
        text=[_hover(score, student, half) for student, half in zip(students, halves, strict=True)],
    )  # fmt: skip
    taus = _tau_table(result)
    rows = [f"{row[0].text}: {row[1].text}" for row in taus.rows] if taus else []
    drawing.add_annotation(
        text="<br>".join(["Kendall tau [95 %]", *rows]), xref="paper", yref="paper", x=0.02, y=0.98, xanchor="left",
        yanchor="top", align="left", showarrow=False, bgcolor="rgba(255,255,255,0.8)", font={"size": 11},
    )  # fmt: skip
    drawing.update_xaxes(
        title=f"Search score: {name} {result.brief.reached}",
        **score_axis(score, [student.score for student in students]),
    )
    drawing.update_yaxes(
        title=f"{capitalised(name)} after {result.longer.words}",
        **score_axis(score, [student.mean for student in students]),
    )
    drawing = styled(drawing)
    drawing.update_layout(margin={"b": 60})
    caption = "One point a student, coloured by MACs." if _has_macs(macs) else "One point a student."
    if any(half is not None for half in halves):
        caption += (
            " Bars: 95 % interval of the mean over seeds, the spread between seeds pooled over all students. The "
            "search’s scores are single trainings and have no interval."
        )
    return Figure("audit", "Search score against longer training", caption, drawing)


def audit_html(run: RunRecord, result: AuditResult | None, drawing: str) -> str:
    """Return the report's section on the audit; `drawing` is its figure as HTML, empty where there is none."""
    heading = "<h2>How well the search’s scores rank</h2>"
    if result is None:
        return f"<section>{heading}<p class='lead'>{in_html(trust_line(run))}</p></section>"
    items = "".join(f"<li>{in_html(sentence)}</li>" for sentence in findings(run, result))
    shown_tables = "".join(table.html() for table in tables(result, loss_name(run.config.distillation)))
    return f"<section>{heading}<ul>{items}</ul>{shown_tables}{drawing}</section>"


def audit_document(run: RunRecord) -> dict[str, object] | None:
    """Return the audit as plain data, as `kdnas audit --json` prints it; None where none was made.

    Every estimate is {value, low, high, items, pairs} or null; `low` and `high` enclose 95 %.
    """
    result = audit_result(run)
    if result is None:
        return None
    needed = result.needed
    return {
        "brief": result.brief.as_dict(),
        "longer": result.longer.as_dict(),
        "asked": {"students": result.asked_students, "seeds": result.asked_seeds},
        "trainings": result.trainings,
        "band_width": result.tolerance,
        "tau": {scope.name: _taus(run, scope.taus) for scope in result.scopes},
        "beside": {
            cost: {"gain": _plain(b.gain), "gain_in_bands": _plain(b.gain_in_bands), "partial": _plain(b.partial)}
            for cost, b in result.baselines.items()
        },
        "one_training": _plain(result.one_training),
        "ceiling": _plain(result.ceiling),
        "needed": needed
        and {
            "tau": TARGET_TAU,
            "epochs": needed.epochs,
            "low": needed.low if math.isfinite(needed.low) else None,
            "high": needed.high if math.isfinite(needed.high) else None,
            "seeds_crossed": needed.crossed,
            "curve": [{"epoch": epoch, **(_plain(e) or {})} for epoch, e in needed.curve],
        },
        "forecast": _plain(result.forecast),
        "rungs": [
            {
                "fidelity": rung.fidelity.as_dict(),
                "tau": _taus(run, rung.taus),
                "gain": _plain(rung.gain),
            }
            for rung in result.rungs
        ],
        "losses": [
            {
                "loss": row.loss,
                "tau": _plain(row.tau),
                "gain": _plain(row.gain),
                "forecast": _plain(row.forecast),
            }
            for row in result.losses
        ],
        "verdict": verdict(result) if result.scopes else "",
        "students": [
            {
                "trial": student.trial.number,
                "arch_id": student.trial.arch.arch_id,
                "band": student.band,
                f"search_{run.score.name}": student.score,
                "scores": [student.longer[seed] for seed in sorted(student.longer)],
            }
            for student in result.students
        ],
    }


def _taus(run: RunRecord, taus: Mapping[str, Estimate | None]) -> dict[str, object]:
    return {run.score.name if name == SCORE else name: _plain(estimate) for name, estimate in taus.items()}


def _most(result: AuditResult) -> str:
    return "most of the search’s scores" if result.rungs else "the search’s scores"


def _ceiling(result: AuditResult) -> list[str]:
    if result.ceiling is None:
        return ["The noise ceiling is not known: that takes two longer trainings or more of the same students."]
    return [
        f"Noise ceiling: a second training of {result.longer.words} ranks as the first with tau "
        f"{shown_tau(result.ceiling)}; against single such trainings the search score reaches "
        f"{shown_tau(result.one_training)} ({counted(result.ceiling.items, 'student')})."
    ]


def _needed(needed: NeededFidelity | None, longer: Fidelity) -> list[str]:
    wanted = f"For tau {TARGET_TAU:g}"
    if needed is None:
        return [f"{wanted}, how many epochs a score would need is not known: scores on the way were not looked at."]
    share = "" if longer.data_fraction == 1 else f" on {100 * longer.data_fraction:g} % of the data"
    how = (
        "the score on the way against the end of trainings with other seeds"
        if needed.crossed
        else "the score on the way against the end of the same training, which flatters"
    )
    method = (
        f"(learning curves of {counted(needed.curve[0][1].items, 'student')}: {how}; on the way the learning rate is "
        "still high, so a training planned that short may need fewer)"
    )
    if needed.epochs is None:
        best = max(needed.curve, key=lambda point: point[1].value)
        return [
            f"{wanted} no epoch within {longer.epochs}{share} suffices for good; the best is epoch {best[0]} with "
            f"{shown_tau(best[1])} {method}."
        ]
    low, high = (
        f"{end:.0f}" if math.isfinite(end) else f"more than {longer.epochs}" for end in (needed.low, needed.high)
    )
    epochs = counted(needed.epochs, "epoch")
    return [f"{wanted} a score needs about {epochs}{share}, 95 % {low} to {high} {method}."]


def _students(estimate: Estimate | None) -> str:
    return "too few" if estimate is None else str(estimate.items)


def _rounded(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if abs(value) >= 0.005 else "0.00"


def _has_macs(macs: list[float]) -> bool:
    return all(value > 0 for value in macs)


def _macs_bar(macs: list[float]) -> dict[str, object]:
    low, high = math.log10(min(macs)), math.log10(max(macs))
    marks = sorted({low, (low + high) / 2, high})
    texts = [scaled(10**mark).strip() for mark in marks]
    return {"title": {"text": label("macs")}, "tickvals": marks, "ticktext": texts, "thickness": 12, "len": 0.8}


def _hover(score: Quantity, student: AuditedStudent, half: float | None) -> str:
    trial = student.trial
    return (
        f"trial {trial.number} · {trial.arch.arch_id}<br>search score {score.shown(student.score)}"
        f"<br>longer {shown_interval(score, student.mean, half)}<br>MACs {shown('macs', trial.values.get('macs'))}"
    )


def _plain(estimate: Estimate | None) -> dict[str, float | None] | None:
    if estimate is None:
        return None
    low, high = (end if math.isfinite(end) else None for end in (estimate.low, estimate.high))
    return {"value": estimate.value, "low": low, "high": high, "items": estimate.items, "pairs": estimate.pairs}
