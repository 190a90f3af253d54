"""`kdnas measure`: latency, memory and energy of students on a target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdnas.cli._options import DataRoot, Json, TrustCode, allow_code_of_run
from kdnas.core.measurement import Measurement
from kdnas.core.pick import PICKS

if TYPE_CHECKING:
    from kdnas.report.table import Table
    from kdnas.targets import Missing
    from kdnas.workshop.measuring import TargetReport


Students = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN|STUDENT...",
        help="A run folder (its front), or an exported student: a folder, student.json or student.onnx.",
        show_default=False,
    ),
]
MaxDrift = Annotated[
    float,
    typer.Option(
        "--max-drift", min=0.01, help="Refuse where the reference network's time changes by more than this share."
    ),
]


def command(
    students: Students,
    target: Annotated[
        list[str],
        typer.Option("--target", metavar="T", help="cpu, cuda or onnxruntime; may be repeated.", show_default=False),
    ],
    pick: Annotated[
        str | None,
        typer.Option("--pick", metavar="P", help=f"Of a run only this student: {PICKS}."),
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads on a CPU. Default: 1.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Samples a pass. Default: 1, on cuda 1 and 256.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=5, help="How often each student is timed.")] = 50,
    max_drift: MaxDrift = 0.5,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Measure latency, peak memory and energy on this machine.

    Students are timed in turn, with a reference network in between. Whatever slows the machine slows both, and the
    reported latency is their ratio times the reference's own. Results are medians with interquartile ranges. Energy
    comes from a hardware counter (NVML, RAPL); without one it is left empty. On a machine that is too unsteady nothing
    is reported, and the exit status is 1.

    Examples:
      kdnas measure runs/digits --target cpu
      kdnas measure runs/digits --pick best --target cpu --target onnxruntime --threads 2
      kdnas measure student/student.onnx --target onnxruntime --json
    """
    from kdnas.plugins import own_name
    from kdnas.workshop.measuring import measure, subjects, targets
    from kdnas.workshop.opening import data_root as stated_root

    root = stated_root(data_root)
    for path in students:
        allow_code_of_run(path, root, trust_code)
    found = [subject for path in students for subject in subjects(path, pick, data_root)]
    options = {"threads": threads, "batch_size": batch_size}
    stated = {key: value for key, value in options.items() if value is not None}
    chosen = {name: targets(name, stated) for name in dict.fromkeys(map(own_name, target))}

    def notify(line: str) -> None:
        if not as_json:
            typer.echo(line, err=True)

    try:
        reports = [
            measure(found, name, variant, repeats=repeats, max_drift=max_drift, notify=notify)
            for name, variants in chosen.items()
            for variant in variants
        ]
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing is kept of a measurement, the same command begins it again", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps({"targets": [report.as_dict() for report in reports]}, indent=2))
        return
    from kdnas.cli._terminal import console as terminal
    from kdnas.cli._terminal import printed, say

    console = terminal()
    for report in reports:
        console.print(f"\n{report.where}", style="bold", markup=False)
        console.print(printed(report_table(report)))
        for line in footnotes(report):
            say(console, line)


def report_table(report: TargetReport) -> Table:
    """Return the students of `report`, one a row."""
    from kdnas.report.table import Table
    from kdnas.report.wording import scaled, shown

    headings = ("student", "MACs", "latency", "IQR", "peak memory", "energy a pass", "IQR")
    rows = []
    for student in report.students:
        latency, memory, energy = student.latency_ms, student.peak_memory_bytes, student.energy_mj
        rows.append(
            (
                student.subject.arch.arch_id,
                scaled(student.macs).strip(),
                f"{latency.value:.3f} ms",
                f"{latency.spread:.3f}",
                shown("peak_memory_bytes", _value(memory)),
                shown("energy_mj", _value(energy)),
                f"{energy.spread:.3g}" if isinstance(energy, Measurement) else "–",
            )
        )
    return Table.of_texts(report.where, headings, rows)


def footnotes(report: TargetReport) -> list[str]:
    """Return what must be known to read `report`: how steady the machine was, and why a quantity is missing."""
    from kdnas.targets import Missing

    latency = report.students[0].latency_ms
    lines = [
        f"{latency.repeats} passes each; the reference network took {report.reference_ms:.3f} ms and changed by "
        f"{report.drift:.0%} meanwhile."
    ]
    for name in ("peak_memory_bytes", "energy_mj"):
        found = getattr(report.students[0], name)
        how = f"not measured: {found.reason}" if isinstance(found, Missing) else found.context.partition("; ")[2]
        lines.append(f"{name}: {how}.")
    return lines


def _value(found: Measurement | Missing) -> float | None:
    return found.value if isinstance(found, Measurement) else None
