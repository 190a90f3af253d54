"""MODEL_CARD.md: what the student is, what was measured of it, how it was made, and its limits."""

from __future__ import annotations

from pathlib import Path

from kdnas.errors import ExportError
from kdnas.exporters import EXPORTERS, TrainedStudent, Written
from kdnas.exporters._card import card_text
from kdnas.exporters._predict import write_preprocessing

FILE = "MODEL_CARD.md"


@EXPORTERS.register
def model_card(student: TrainedStudent, folder: Path) -> Written:
    """A model card in Markdown: measured numbers with their spread, data and split, how it was made, limits."""
    path, text = folder / FILE, card_text(student)
    path.write_text(text, encoding="utf-8")
    if path.read_text(encoding="utf-8") != text:
        raise ExportError(f"{FILE}: it did not read back as written")
    return Written((FILE, write_preprocessing(student, folder)))
