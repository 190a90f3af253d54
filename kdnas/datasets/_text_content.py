"""Faults of a data set seen in its labelled texts: texts that occur twice, odd names of classes.

Shapes: N texts, those of a split in one block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kdnas.core.words import counted, escaped

_LISTED = 5
_FEW_OF_EACH = 4
"""Texts of a class, on average, below which its labels hardly are classes."""
_MISSING = frozenset({"na", "n/a", "nan", "null", "<na>"})
"""What tables write where nothing is known, in small letters."""


def doubts(
    digests: Sequence[bytes],
    labels: np.ndarray,
    names: Sequence[str],
    counts: Mapping[str, int],
    samples: str = "texts",
) -> Iterator[str]:
    """Yield what the user should know of texts, compared by their digests, with these labels [N].

    Args:
        digests: Of the texts, N of them.
        labels: Classes, int64, or numbers.
        names: Of the classes; none where labels are numbers.
        counts: How many texts each split has, in their order.
        samples: What they are called.
    """
    yield from _repeated(digests, labels, counts, samples)
    yield from _odd_names(names)
    if len(names) * _FEW_OF_EACH > len(labels) and len(names) > _LISTED:
        yield (
            f"{len(names):,} classes of {len(labels):,} texts, such as {_listed(names)}: are they numbers "
            "(labels: values), or is another column the label?"
        )


def _repeated(digests: Sequence[bytes], labels: np.ndarray, counts: Mapping[str, int], samples: str) -> Iterator[str]:
    splits = iter(counts.items())
    split, first = next(splits)
    known = set(digests[:first])
    twice = first - len(known)
    if twice and not counts.get("validation"):
        yield (
            f"{twice:,} of {first:,} {split}ing {samples} repeat others: validation {samples} drawn from them are "
            "trained on as well"
        )
    for split, count in splits:
        last = first + count
        twice = sum(digest in known for digest in digests[first:last])
        if twice:
            yield f"{twice:,} of {last - first:,} {split} {samples} are training {samples} as well"
        known |= set(digests[first:last])
        first = last
    of_text: dict[bytes, set[float]] = {}
    for digest, label in zip(digests, labels.tolist(), strict=True):
        of_text.setdefault(digest, set()).add(label)
    torn = sum(len(found) > 1 for found in of_text.values())
    if torn:
        one = counted(torn, samples.removesuffix("s"))
        yield f"{one} {'has' if torn == 1 else 'have'} different labels in different rows"


def _odd_names(names: Sequence[str]) -> Iterator[str]:
    alike = Counter(" ".join(name.casefold().split()) for name in names)
    same = [name for name in names if alike[" ".join(name.casefold().split())] > 1]
    if same:
        yield f"classes whose names differ in nothing but capitals and spaces are different ones: {_listed(same)}"
    missing = [name for name in names if name.casefold() in _MISSING]
    if missing:
        yield f"a class is called {_listed(missing)}: rows whose label is not known should be left out"


def _listed(names: Sequence[str]) -> str:
    return escaped(", ".join(names[:_LISTED])) + (", ..." if len(names) > _LISTED else "")
