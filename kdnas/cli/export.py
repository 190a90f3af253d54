"""`kdnas export`: a student of a run in the formats that training and serving pipelines read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdnas.cli._options import DataRoot, Pick, RunFolder, TrustCode, allow_code_of_run
from kdnas.core.pick import DEFAULT_PICK
from kdnas.plugins import own_name
from kdnas.report.wording import shown


def command(
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the files go.", show_default=False)],
    pick: Pick = DEFAULT_PICK,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="F",
            help="safetensors, student_json, student_py, onnx, huggingface, timm, train_yaml, model_card; may be "
            "repeated. Default: all that the student has.",
            show_default=False,
        ),
    ] = None,
    data_root: DataRoot = None,
    trust_code: TrustCode = False,
) -> None:
    """Write a trained student of RUN to a folder.

    Each format is checked against the student's own outputs. Where one does not reproduce them, nothing is written. The
    weights are those of the retraining with the best validation score.

    Examples:
      kdnas export runs/digits --pick best-0.5 --out student
      kdnas export runs/digits --pick 'macs<=1M' --format onnx --format model_card --out student
    """
    from kdnas.plan.exporting import check_formats, export_student
    from kdnas.record.front import pick as pick_member
    from kdnas.record.storage import load_run
    from kdnas.report.summary import in_doubt
    from kdnas.workshop import opening

    formats = [own_name(name) for name in formats or ()]
    if formats:
        check_formats(formats)
    root = opening.data_root(data_root)
    record = load_run(run)
    allow_code_of_run(run, root, trust_code)
    member = pick_member(record, pick)
    if doubt := in_doubt(record, member):
        typer.echo(f"student {member.trial.arch.arch_id}: {doubt}", err=True)
    written = export_student(record, member, formats or None, out, data_root=root, notify=typer.echo)
    width = max(len(str(path)) for path in written)
    for path in written:
        typer.echo(f"{path!s:<{width}}  {shown('size_bytes', path.stat().st_size)}")
