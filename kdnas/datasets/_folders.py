"""The layout of image folders: each picture's class and split, taken from the folders that it lies in."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from kdnas.core.words import counted, escaped
from kdnas.datasets._inputs import Problems, class_name_problems
from kdnas.errors import DataError, Problem

Parts = tuple[str, ...]
"""A path inside the data set, by its parts."""
Split = Literal["train", "val", "test"]

LAYOUT = "train/<class>/* and test/<class>/*, or <class>/*"
_SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validating", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""Names of split folders, without case, signs and a trailing "set", "split", "data" or "images"."""


class Place(NamedTuple):
    """Where a picture belongs."""

    label: int
    is_test: bool


@dataclass(frozen=True)
class Layout:
    """The classes, the place of every picture that is used, and what the user should know of the others."""

    class_names: tuple[str, ...]
    places: Mapping[Parts, Place]
    notes: tuple[str, ...]

    def in_order(self, class_names: tuple[str, ...]) -> Layout:
        """Return the layout with its classes in the order of `class_names`. Raises DataError where these are others."""
        names = tuple(unicodedata.normalize("NFC", name) for name in class_names)
        if sorted(names) != sorted(self.class_names):
            odd = _listed(set(names) ^ set(self.class_names) or set(names))
            raise DataError(Problem("class_names", f"are not the class folders: {odd}", _listed(self.class_names)))
        label_of = [names.index(name) for name in self.class_names]
        places = {parts: Place(label_of[place.label], place.is_test) for parts, place in self.places.items()}
        return Layout(names, places, self.notes)


@dataclass(frozen=True)
class Splits:
    """How the user names the splits: folders of theirs (None: found by their names), or a share to carve off."""

    train: str | None = None
    test: str | None = None
    test_fraction: float | None = None

    @property
    def named(self) -> bool:
        """Whether a folder is named."""
        return self.train is not None or self.test is not None


def lay_out(pictures: Sequence[Parts], folders: Collection[Parts], source: str, splits: Splits) -> Layout:
    """Return the layout of `pictures`, with `folders`, empty ones too, below `source`.

    Raises DataError naming every picture that lies elsewhere, empty class folders, and splits of different classes.
    """
    if not pictures:
        raise DataError(Problem(source, "holds no images", LAYOUT))
    problems = Problems()
    roots = _Roots.find(pictures, folders, source, splits, problems)
    problems.raise_if_any()
    return roots.layout(pictures, folders, source)


def split_of(name: str) -> Split | None:
    """Return which split a folder's name stands for, however it is spelt: Train, training_set, VALID, test-images."""
    letters = re.sub(r"[^a-z]", "", name.lower())
    for ending in ("set", "split", "data", "images"):
        if letters != ending:
            letters = letters.removesuffix(ending)
    return _SPLITS.get(letters)


@dataclass(frozen=True)
class _Roots:
    """The folders that hold the class folders of the splits, and those that are left out, with the reason."""

    train: Parts
    test: Parts | None
    unused: tuple[str, ...] = ()
    """In words: what is left out, for the notes."""
    strict: bool = True
    """Whether a picture elsewhere is refused."""

    @classmethod
    def find(
        cls, pictures: Sequence[Parts], folders: Collection[Parts], source: str, splits: Splits, problems: Problems
    ) -> _Roots:
        """Return the roots; adds to `problems` why they cannot be found."""
        if splits.named:
            return _named_roots(pictures, source, splits, problems)
        around = _wrapping(pictures)
        inner = [parts[len(around) :] for parts in pictures]
        bare = {parts[len(around)] for parts in folders if len(parts) == len(around) + 1 and parts[:-1] == around}
        direct = {parts[0] for parts in inner if len(parts) == 2}
        nested = {parts[0] for parts in inner if len(parts) > 2}
        found: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
        for name in sorted(direct | nested | bare):
            split = split_of(name)
            if split is not None:
                found[split].append(name)
        if not nested.intersection(found["train"]):
            _refuse_unsplit(inner, direct, nested, source, splits, problems)
            split_like = [f"{name}/" for names in found.values() for name in names if name in direct]
            taken = "is taken for a class" if len(split_like) == 1 else "are taken for classes"
            notes = [f"{', '.join(split_like)} {taken}: images lie directly inside"] if split_like else []
            return cls(around, None, tuple(notes))
        for split, several in found.items():
            if len(several) > 1:
                what = f"several folders may be the {split} split: {', '.join(several)}"
                problems.add(source, what, "one, named by the option `train` or `test`")
        train = found["train"][0]
        test = next(iter(found["test"] + found["val"]), None)
        if test is None and splits.test_fraction is None:
            _no_test_split(source, problems)
        elif test is not None and splits.test_fraction is not None:
            what = f"has a test split, {test}/, and the option `test_fraction` is given"
            problems.add(source, what, "one of the two; or `train` too, so that other folders are left out")
        used = {name for name in (train, test) if name is not None}
        spare = [name for name in found["val"] if name not in used]
        outside = Counter(parts[0] if len(parts) > 1 else "" for parts in inner)
        for name, count in sorted(outside.items()):
            if name not in used and name not in spare:
                where = f"{source}: {name}/" if name else source
                what = (
                    f"{counted(count, 'image')} {'lies' if count == 1 else 'lie'} outside the "
                    f"split{'s' if len(used) > 1 else ''} {' and '.join(f'{one}/' for one in sorted(used))}"
                )
                problems.add(escaped(where), what, "move them, or name the splits by the options `train` and `test`")
        notes = [
            f"{name}/ is not used ({counted(outside[name], 'image')}): students are scored on a share of {train}/"
            for name in spare
            if outside[name]
        ]
        if test is not None and split_of(test) == "val":
            notes.append(f"{test}/ is the test split, as there is no folder test/")
        return cls((*around, train), None if test is None else (*around, test), tuple(notes))

    def layout(self, pictures: Sequence[Parts], folders: Collection[Parts], source: str) -> Layout:
        """Return the layout by the class folders. Raises DataError."""
        problems = Problems()
        roots = [self.train] if self.test is None else [self.train, self.test]
        found = []
        for (
            root
        ) in roots:  # a test split inside the training one, as next to classes at the top, is none of its classes
            own = [parts for parts in pictures if self._root_of(parts) == root]
            around = [parts for parts in folders if self._root_of(parts) == root and not self._leads_to_a_root(parts)]
            found.append(_classes(own, around, root, source, problems))
        names = tuple(sorted(found[0]))
        if all(found) and len(found) == 2 and found[0] != found[1]:
            for root, extra in zip(roots, (found[0] - found[1], found[1] - found[0]), strict=True):
                if extra:
                    where = f"{'/'.join(root[len(_common(roots)) :])}/"
                    problems.add(
                        escaped(source), f"train and test have different classes: only in {where}: {_listed(extra)}"
                    )
        for problem in class_name_problems(names, source):
            problems.add(problem.where, problem.what, problem.allowed)
        problems.raise_if_any()
        label_of = {name: label for label, name in enumerate(names)}
        places = {}
        for parts in pictures:
            own_root = self._root_of(parts)
            if own_root is not None:
                places[parts] = Place(label_of[_class_of(parts, own_root)], own_root == self.test)
        notes = list(self.unused)
        left = len(pictures) - len(places)
        if left and not self.strict:
            kept = " and ".join(f"{'/'.join(root) or '.'}/" for root in roots)
            notes.append(f"{counted(left, 'image')} outside {kept} {'is' if left == 1 else 'are'} left out")
        deeper = {parts[len(root) + 1] for parts in places if len(parts) > len(root := self._root_of(parts) or ()) + 2}
        if deeper:
            notes.append(
                f"classes are the folders {_listed(names)}; folders below them, {_listed(deeper)}, have no meaning"
            )
        return Layout(names, places, tuple(notes))

    def _leads_to_a_root(self, parts: Parts) -> bool:
        return any(root is not None and root[: len(parts)] == parts for root in (self.train, self.test))

    def _root_of(self, parts: Parts) -> Parts | None:
        """Return the root that a path lies below, the deeper one of two; None where it lies elsewhere."""
        roots = sorted((root for root in (self.train, self.test) if root is not None), key=len, reverse=True)
        return next((root for root in roots if len(parts) > len(root) and parts[: len(root)] == root), None)


def _named_roots(pictures: Sequence[Parts], source: str, splits: Splits, problems: Problems) -> _Roots:
    """Return the roots that the user's options name; a split that is not named is looked for by its name."""
    named: dict[str, Parts] = {}
    for option, path in (("train", splits.train), ("test", splits.test)):
        if path is None:
            continue
        root = PurePosixPath(path).parts
        named[option] = root
        if not any(len(parts) > len(root) and parts[: len(root)] == root for parts in pictures):
            there = sorted({"/".join(parts[: max(len(root), 1)]) for parts in pictures if len(parts) > len(root)})
            problems.add(f"{source}: {option}", f"there are no images in {path}/", escaped(", ".join(there[:10])))
    if splits.test is not None and splits.test_fraction is not None:
        problems.add(source, "the options `test` and `test_fraction` are both given", "one of the two")
    if "train" in named and "test" not in named and splits.test_fraction is None:
        _no_test_split(source, problems)
    if "train" not in named:
        siblings = named["test"][:-1]
        tops = {
            parts[len(siblings)]
            for parts in pictures
            if len(parts) > len(siblings) + 2 and parts[: len(siblings)] == siblings
        }
        train = [name for name in sorted(tops) if split_of(name) == "train"]
        if len(train) != 1:
            problems.add(
                f"{source}: train",
                "the folder of the training images cannot be found by its name",
                "the option `train`",
            )
        named["train"] = (*siblings, *train[:1])
    return _Roots(named["train"], named.get("test"), strict=False)


def _refuse_unsplit(
    inner: Sequence[Parts], direct: set[str], nested: set[str], source: str, splits: Splits, problems: Problems
) -> None:
    """Add to `problems` what keeps the top folders from being classes."""
    splitlike = sorted(name for name in direct | nested if split_of(name) is not None)
    if splitlike and len(splitlike) == len(direct | nested):
        missing = "hold images but no class folders" if direct else "are no training split"
        problems.add(source, f"{_listed(splitlike)} {missing}", f"{LAYOUT}; or `train: .` where they are classes")
        return
    tokens = {name: {_SPLITS.get(part) for part in re.split(r"[^a-z]+", name.lower())} for name in sorted(nested)}
    tokens |= {name: {split_of(name)} for name in sorted(direct - nested)}
    every = set().union(*tokens.values()) - {None}
    if len(every) > 1:  # one folder called as a split may be a class
        named = _listed([name for name, kinds in tokens.items() if kinds - {None}])
        problems.add(source, f"{named} may be splits or classes", "the options `train` and `test`, or `train: .`")
    below = {(parts[0], parts[1]) for parts in inner if len(parts) > 2}
    inside = sorted({child for _, child in below})
    if not direct and len(inside) > 1 and all(split_of(child) is not None for child in inside):
        what = f"the splits {_listed(inside)} lie inside the classes {_listed(sorted(nested))}"
        problems.add(source, what, "train/<class>/* and test/<class>/*; or `train: .` where one split is made of them")
        return
    others = direct | nested
    for name in sorted(nested):
        shared = sorted({child for top, child in below if top == name} & (others - {name}))
        if shared:
            what = f"{name}/ holds folders with the names of classes next to it: {_listed(shared)}"
            problems.add(source, what, f"{LAYOUT}; or the options `train` and `test`")
    if splits.test_fraction is None:
        _no_test_split(source, problems)


def _no_test_split(source: str, problems: Problems) -> None:
    allowed = "a folder test/ or val/ next to train/, the option `test` naming it, or the option `test_fraction`"
    problems.add(source, "has no test split", allowed)


def _wrapping(pictures: Sequence[Parts]) -> Parts:
    """Return the folders around the layout, which all pictures share."""
    first, strip = pictures[0], 0
    while all(len(parts) > strip + 1 and parts[strip] == first[strip] for parts in pictures):
        if all(len(parts) == strip + 2 for parts in pictures):
            break
        inside = {parts[strip + 1] for parts in pictures if len(parts) > strip + 3}
        if split_of(first[strip]) == "train" and not any(split_of(name) == "train" for name in inside):
            break
        strip += 1
    return first[:strip]


def _common(roots: Sequence[Parts]) -> Parts:
    """Return the folders that all of `roots` lie in."""
    shared = 0
    while all(len(root) > shared + 1 and root[shared] == roots[0][shared] for root in roots):
        shared += 1
    return roots[0][:shared]


def _class_of(parts: Parts, root: Parts) -> str:
    """Return the class of a picture: its folder in one spelling, for accents may be written as one sign or two."""
    return unicodedata.normalize("NFC", parts[len(root)])


def _classes(
    pictures: Sequence[Parts], folders: Collection[Parts], root: Parts, source: str, problems: Problems
) -> set[str]:
    """Return the classes below `root`; adds empty class folders and pictures in no class folder to `problems`."""
    depth = len(root)
    where = escaped(f"{source}: {'/'.join(root)}/") if root else source
    if not pictures:
        problems.add(where, "holds no images", LAYOUT)
        return set()
    if root and all(len(parts) == depth + 1 for parts in pictures):
        allowed = "class folders; or `train` and `test_fraction`, which leave other folders out"
        problems.add(where, "holds images but no class folders, so that nothing labels them", allowed)
        return set()
    for parts in pictures:
        if len(parts) == depth + 1:
            problems.add(escaped(f"{source}: {'/'.join(parts)}"), "lies in no class folder")
    filled = {_class_of(parts, root) for parts in pictures if len(parts) > depth + 1}
    there = {_class_of(parts, root) for parts in folders if len(parts) == depth + 1}
    for name in sorted(there - filled):
        problems.add(escaped(f"{source}: {'/'.join((*root, name))}"), "the class folder holds no images")
    return filled | there


def _listed(names: Collection[str]) -> str:
    shown = escaped(", ".join(sorted(names)[:10]))
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
