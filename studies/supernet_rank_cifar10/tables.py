"""The tables of the study, from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdnas import atomic
from kdnas.core.rank import Estimate, agreement, agreement_gain, mean_agreement
from kdnas.core.words import counted
from kdnas.record.lock import this_machine

KINDS = ("supernet", "finetune", "scratch")
"""The scores, in the order of a search's rungs."""
_WORDS = {"supernet": "shared weights", "finetune": "from shared weights", "scratch": "from scratch"}
_GOAL, _SHARE = 0.8, 0.1


def write_results(
    folder: Path, setting: Mapping[str, Any], records: Sequence[Mapping[str, Any]], supernet: Any
) -> None:
    """Write scores.csv (a row a student), summary.csv (a row a score) and table.md to `folder`."""
    scores = _scores(records)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "scores.csv", scores.to_csv(index=False, lineterminator="\n"))
    seeds = [column for column in scores if column.startswith("reference_")]
    whole = scores.dropna(subset=[*KINDS, *seeds]) if set(KINDS) <= set(scores) and seeds else scores[:0]
    if len(whole) < 3:
        atomic.write_text(folder / "table.md", f"{len(whole)} students have every score yet: too few to rank.\n")
        return
    summary = _summary(whole, seeds, records, supernet)
    atomic.write_text(folder / "summary.csv", summary.to_csv(index=False, lineterminator="\n"))
    atomic.write_text(folder / "table.md", _markdown(whole, seeds, summary, setting, supernet))


def _scores(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    rows: dict[int, dict[str, Any]] = {}
    for record in records:
        row = rows.setdefault(record["number"], {name: record[name] for name in ("arch_id", "macs", "params")})
        kind = record["kind"]
        row[kind if kind in KINDS else f"{kind}_{record['seed']}"] = record["accuracy"]
    archs = {record["number"]: record["arch"] for record in records}
    table = pd.DataFrame([{**row, "arch": archs[number]} for number, row in sorted(rows.items())])
    first = ["arch_id", "macs", "params", *(kind for kind in KINDS if kind in table)]
    references = sorted(column for column in table if column.startswith("reference_"))
    return table[[*first, *references, "arch"]]


def _summary(
    whole: pd.DataFrame, seeds: Sequence[str], records: Sequence[Mapping[str, Any]], supernet: Mapping[str, Any]
) -> pd.DataFrame:
    """Return tau, its gain over the parameter count, and the mean cost of each score."""
    means = whole[list(seeds)].mean(axis=1).to_numpy()
    rows = []
    for name in (*KINDS, "params", "macs"):
        own = [record for record in records if record["kind"] == name]
        gain = None if name == "params" else agreement_gain(whole[name], whole["params"], means)
        tau = agreement(whole[name], means)
        rows.append({"score": name, **_flat("tau", tau), **_flat("over_params", gain), **_cost(own)})
    if len(seeds) > 1:
        pairs = [(whole[a], whole[b]) for index, a in enumerate(seeds) for b in seeds[:index]]
        own = [record for record in records if record["kind"] == "reference"]
        rows.append({"score": "reference", **_flat("tau", mean_agreement(pairs)), **_cost(own)})
    table = pd.DataFrame(rows)
    brief = table.loc[table["score"] == "scratch"].iloc[0]
    table["share_of_scratch_macs"] = table["macs"] / brief["macs"]
    table["share_of_scratch_seconds"] = table["seconds"] / brief["seconds"]
    shared = table["score"].isin(["supernet", "finetune"])
    for column in ("macs", "seconds"):
        extra = shared * supernet[column] / len(whole)
        table[f"{column}_with_supernet"] = table[column] + extra
    return table.round(6)


def _cost(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    if not records:
        return {"seconds": 0.0, "macs": 0.0}
    return {
        "seconds": sum(record["seconds"] for record in records) / len(records),
        "macs": sum(record["spent_macs"] for record in records) / len(records),
    }


def _flat(name: str, estimate: Estimate | None) -> dict[str, float]:
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _markdown(
    whole: pd.DataFrame, seeds: Sequence[str], summary: pd.DataFrame, setting: Mapping[str, Any], supernet: Any
) -> str:
    rows = summary.set_index("score")
    brief = rows.loc["scratch"]
    repeated = "one seed" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"
    lines = [
        f"{len(whole)} students of {whole['macs'].min() / 1e6:.1f} to {whole['macs'].max() / 1e6:.1f} M MACs; "
        f"reference: {setting['reference_epochs']} epochs of {100 * setting['data_fraction']:g} % of the training "
        f"images from scratch, {repeated}. {this_machine().processor}, one thread a score.",
        "",
        "| score | Kendall tau with the reference | over params | seconds a score | MACs a score | share of scratch |",
        "|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        row = rows.loc[kind]
        epochs = setting.get(f"{kind}_epochs")
        words = _WORDS[kind] if kind == "supernet" else f"{counted(epochs, 'epoch')} {_WORDS[kind]}"
        if kind == "finetune":
            words += f" on {100 * setting['finetune_data_fraction']:g} % of the images"
        lines.append(
            f"| {kind}: {words} | {_interval(row, 'tau')} | {_interval(row, 'over_params')} | {row['seconds']:.2f} | "
            f"{row['macs'] / 1e9:,.0f} G | {100 * row['share_of_scratch_macs']:.1f} % of the MACs, "
            f"{100 * row['share_of_scratch_seconds']:.1f} % of the seconds |"
        )
    lines += [f"| {name} alone | {_interval(rows.loc[name], 'tau')} | | 0 | 0 | |" for name in ("params", "macs")]
    if "reference" in rows.index:
        row = rows.loc["reference"]
        words = f"reference, one seed against another | {_interval(row, 'tau')}"
        lines.append(f"| {words} | | {row['seconds']:.2f} | {row['macs'] / 1e9:,.0f} G | |")
    even = supernet["macs"] / max(brief["macs"] - rows.loc["supernet", "macs"], 1)
    lines += [
        "",
        f"The supernet itself ({supernet['policy']}) took {supernet['seconds']:.0f} s and "
        f"{supernet['macs'] / 1e12:.2f} T MACs, once: with it, scores of shared weights cost less MACs than brief "
        f"trainings from {even:.0f} students on. "
        "Square brackets are 95 % intervals (bootstrap over the students).",
        "",
        _verdict(rows),
        "",
    ]
    return "\n".join(lines)


def _verdict(rows: pd.DataFrame) -> str:
    shared = rows.loc[["supernet", "finetune"]]
    cheap = shared[shared["share_of_scratch_macs"] <= _SHARE]
    if cheap.empty:
        return f"Goal, tau at least {_GOAL} at a tenth of the cost of brief training: **missed**, no score is so cheap."
    best = cheap.loc[cheap["tau"].idxmax()]
    met = "met" if best["tau"] >= _GOAL else "missed"
    return (
        f"Goal, tau at least {_GOAL} at a tenth of the cost of brief training: **{met}** (the best so cheap, "
        f"{best.name}: tau {best['tau']:.2f} at {100 * best['share_of_scratch_macs']:.1f} % of the MACs)."
    )


def _interval(row: pd.Series, name: str) -> str:
    if pd.isna(row.get(name)):
        return "not known"
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
