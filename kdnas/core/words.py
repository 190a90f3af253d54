"""How numbers are said: shared by messages, tables and reports."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return "1 trial", "3 trials"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
