"""The files a run's report is made of, written into its folder."""

from __future__ import annotations

from pathlib import Path

from kdnas import atomic
from kdnas.errors import RunFolderError
from kdnas.record.products import note_products
from kdnas.record.records import RunRecord
from kdnas.report.page import page
from kdnas.report.picture import front_picture
from kdnas.report.tables import front_table, trials_table, write_csv


def write_report(run: RunRecord, folder: Path | None = None) -> tuple[Path, ...]:
    """Write report.html, front.csv, trials.csv and front.svg of `run` into `folder` (its own by default).

    Each file is whole or untouched. Returns the paths. Raises RunFolderError where the folder cannot be written.
    """
    folder = run.folder if folder is None else folder
    document = page(run)
    try:
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
