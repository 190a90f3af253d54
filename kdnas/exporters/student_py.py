"""student.py: the network as one readable file that needs only torch, or the library that its class comes from."""

from __future__ import annotations

from pathlib import Path

from kdnas.exporters import EXPORTERS, TrainedStudent, Written
from kdnas.exporters._code import write_code


@EXPORTERS.register
def student_py(student: TrainedStudent, folder: Path) -> Written:
    """The network as one readable Python file without kdnas, with its weights and a script that labels pictures."""
    return write_code(student, folder)
