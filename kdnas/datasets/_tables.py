"""Tables of texts: rows of csv, tsv, JSON lines, parquet and arrow files, with the columns that hold text and label.

What the user does not state is found: delimiter, header, and columns of the usual names.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from kdnas.core.words import escaped
from kdnas.datasets._inputs import Problems
from kdnas.datasets._labels import declared_names
from kdnas.datasets._text_files import TextFile, checked_encoding, open_text
from kdnas.errors import DataError, Problem

Column = str | int
"""A column's name, or its place from 0."""
OBJECTS, COLUMNAR = (".jsonl", ".ndjson", ".json"), (".parquet", ".arrow")
FORMATS = (".csv", ".tsv", ".txt", *OBJECTS, *COLUMNAR)
_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"))
_TEXTS = ("text", "sentence", "review", "content", "document", "question", "query")
_ASKING = ("query", "question", "context", "ctx", "prompt")
_ANSWERING = ("candidates", "endings", "choices", "options", "passages", "documents")
_LABELS = ("label", "labels", "class", "category", "target", "sentiment", "score", "stars")
_DELIMITERS = (",", "\t", ";", "|")
_MOST = 0.8
"""Of the first rows, by which a delimiter is known."""
_HEAD_ROWS = 20
_SHOWN_ROWS, _FEWEST_ROWS = 200, 20
"""By how many rows it is seen which of two columns is the label, and no fewer."""
_RECURS, _VARIES = 0.1, 0.9
"""At most, and at least, so many different cells a row has a column of labels, and one of texts."""
_ROWS = 4096
_LARGEST_CELL = 1 << 30


@dataclass(frozen=True)
class Reading:
    """How tables are read, as the user states it; None is found."""

    text: tuple[Column, ...] | None = None
    label: Column | None = None
    delimiter: str | None = None
    encoding: str | None = None
    header: bool | None = None
    quoting: bool | None = None
    lists: bool = False
    """Whether a row has a query with a list of candidates: in columns of their own, or a column that holds lists."""


@dataclass(frozen=True)
class Row:
    """One row: where it stands, its one or two texts (None: empty), its label as the file gives it (None: empty).

    Where rows are lists, its texts are the query and the candidates.
    """

    where: str
    texts: tuple[str | None, ...]
    label: Any


@dataclass
class Found:
    """What reading files has found out."""

    declared: dict[Path, tuple[str, ...] | None] = field(default_factory=dict)
    """The class names in each file."""
    notes: dict[str, None] = field(default_factory=dict)
    """What the user should know, each once."""


def found_encoding(file: TextFile, stated: str | None, found: Found) -> str:
    """Return what `checked_encoding` does; one that nobody stated is noted unless it is UTF-8."""
    encoding = checked_encoding(file, stated)
    if stated is None and not encoding.startswith("utf-8"):
        found.notes[f"{file.shown} is read as {encoding}"] = None
    return encoding


def read_table(file: TextFile, reading: Reading, found: Found, problems: Problems) -> Iterator[Row]:
    """Yield the rows of `file`. Adds to `problems` what is wrong with rows; raises DataError where it is no table."""
    suffix = file.suffix
    if suffix not in FORMATS:
        raise DataError(Problem(str(file.shown), "is of no format that is read", ", ".join(FORMATS)))
    file = file.unpacked()
    if suffix in OBJECTS:
        yield from _json_rows(file, reading, found, problems)
    elif suffix in COLUMNAR:
        yield from _arrow_rows(file, reading, found, problems)
    else:
        yield from _separated_rows(file, reading, found, problems)


@dataclass(frozen=True)
class _Columns:
    texts: tuple[int, ...]
    label: int
    lists: bool = False


def _columns(names: Sequence[str], reading: Reading, where: str) -> _Columns:
    """Return the places of text and label among columns of these names. Raises DataError with all that is wrong."""
    problems: list[Problem] = []
    if reading.label is not None and reading.label in (reading.text or ()):
        problems.append(Problem(f"{where}: label_column", f"{reading.label!r} is the text", "another column"))
    wanted = reading.text
    spelled = {name.lower(): name for name in reversed(names)}
    if wanted is None:
        usual = itertools.product(_ASKING, _ANSWERING) if reading.lists else _PAIRS
        pairs = [tuple(spelled[name] for name in pair) for pair in usual if spelled.keys() >= {*pair}]
        singles = [(spelled[name],) for name in _TEXTS if name in spelled and not reading.lists]
        options: list[tuple[str, ...]] = pairs or [*singles]
        if len(options) == 1:
            wanted = options[0]
        else:
            one, option = ("text", "text_column")
            if reading.lists:
                one, option = "query and its candidates", "query_column and candidates"
            called = "no columns are called as a query and its candidates usually are"
            none = called if reading.lists else "no column is called as a text usually is"
            what = f"several columns may be the {one}" if options else none
            problems.append(Problem(f"{where}: {option}", what, _listed(names)))
    label = reading.label
    if label is None:
        likely = [spelled[name] for name in _LABELS if name in spelled]
        if len(likely) == 1:
            label = likely[0]
        else:
            what = "several columns may be the label" if likely else "no column is called as a label usually is"
            problems.append(Problem(f"{where}: label_column", what, _listed(names)))
    places = []
    counts = Counter(names)
    for column in (*(wanted or ()), *(() if label is None else (label,))):
        if isinstance(column, int) and 0 <= column < len(names):
            places.append(column)
        elif isinstance(column, str) and counts[column] == 1:
            places.append(list(names).index(column))
        elif isinstance(column, str) and counts[column] > 1:
            what = f"{counts[column]} columns are called {escaped(column)!r}"
            problems.append(Problem(where, what, "columns named by their places from 0"))
        else:
            problems.append(Problem(where, f"has no column {column!r}", _listed(names)))
    if problems:
        raise DataError(problems)
    return _Columns(tuple(places[:-1]), places[-1], reading.lists)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return escaped(", ".join(map(str, names[:20]))) + more


def _row(where: str, cells: Sequence[Any], columns: _Columns) -> Row:
    texts: list[str | None] = []
    for number, place in enumerate(columns.texts):
        listed = columns.lists and number and isinstance(cells[place], list)
        texts += map(_text, cells[place] if listed else [cells[place]])
    return Row(where, tuple(texts), plain_label(cells[columns.label]))


def plain_label(label: Any) -> Any:
    """Return a label as text, int where it is a whole number, float; None where there is none."""
    if isinstance(label, str):
        return label.replace("\ufeff", "").strip() or None
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float | Decimal):
        label = float(label)
        return None if math.isnan(label) else int(label) if label.is_integer() else label
    return label


def _text(cell: Any) -> str | None:
    """Return a cell as text, None where it holds none. Raises ValueError."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if not isinstance(cell, str):
        raise ValueError(f"its text is {type(cell).__name__} {str(cell)[:40]!r}")
    return whole_characters(cell).replace("\ufeff", "").strip() or None


def whole_characters(text: str) -> str:
    """Return `text`. Raises ValueError where it holds half a character, as JSON can escape one: no encoding has it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half of a character, \\u{ord(text[error.start]):04x}") from None
    return text


# -- csv and tsv -------------------------------------------------------------------------------------------------------


def _separated_rows(file: TextFile, reading: Reading, found: Found, problems: Problems) -> Iterator[Row]:
    where = str(file.shown)
    delimiter = reading.delimiter or ("\t" if file.suffix == ".tsv" else None)
    # A tab seldom stands in a text: files that it separates are mostly written without quotes, which texts then hold.
    quoting = reading.quoting if reading.quoting is not None else delimiter != "\t"
    encoding = found_encoding(file, reading.encoding, found)
    delimiter = delimiter or _found_delimiter(file, encoding, quoting)
    head = [cells for _, cells in _cells(file, encoding, delimiter, quoting, limit=_HEAD_ROWS)]
    if not head:
        raise DataError(Problem(where, "is empty"))
    if reading.text is None and reading.label is None and not _is_usual(head[0]):
        shown = [cells for _, cells in _cells(file, encoding, delimiter, quoting, limit=_SHOWN_ROWS)]
        reading = _as_shown(shown, reading, where, found)
    has_header = reading.header if reading.header is not None else _has_header(head, reading, where)
    names = [cell.strip() for cell in head[0]] if has_header else [str(place) for place in range(len(head[0]))]
    columns = _columns(names, reading if has_header else _by_place(reading, where), where)
    found.declared.setdefault(file.shown, None)
    if reading.quoting is None and not quoting and any(_is_quoted(cell) for cells in head for cell in cells):
        found.notes[f"{file.shown}: quotes around a text are read as part of it, unless quoting is true"] = None
    for number, (line, cells) in enumerate(_cells(file, encoding, delimiter, quoting)):
        if number == 0 and has_header:
            continue
        if len(cells) != len(names):
            rule = "quotes around texts that hold a delimiter" if quoting else "one delimiter between two cells"
            problems.add(f"{where}: line {line}", f"has {len(cells)} columns, the first row {len(names)}", rule)
            continue
        yield _row(f"{where}: line {line}", cells, columns)


def _is_quoted(cell: str) -> bool:
    """Whether a cell looks as programs write one that holds quotes or a delimiter."""
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _by_place(reading: Reading, where: str) -> Reading:
    """Return `reading`, whose columns have no names, checked. Raises DataError."""
    stated = (*(reading.text or (None,)), reading.label)
    if any(not isinstance(column, int) for column in stated):
        what = "has no header line, so its columns have no names"
        raise DataError(Problem(where, what, "text_column and label_column by their places from 0, or header: true"))
    return reading


def _is_usual(first: Sequence[str]) -> bool:
    """Whether one of the cells is called as a text or a label usually is."""
    usual = {*_TEXTS, *_LABELS, *(name for pair in _PAIRS for name in pair)}
    return not usual.isdisjoint(cell.strip().lower() for cell in first)


def _as_shown(rows: Sequence[Sequence[str]], reading: Reading, where: str, found: Found) -> Reading:
    """Return `reading` with what the `rows` of a file of two columns show of it: one varies, the cells of one recur.

    The first row is a header where its label is none of the others'. Other files are read as is stated.
    """
    if len(rows) <= _FEWEST_ROWS or any(len(cells) != 2 for cells in rows):
        return reading
    columns = [[cells[place].strip() for cells in rows] for place in (0, 1)]
    shares = [len({*column[1:]}) / len(column[1:]) for column in columns]
    label = 0 if shares[0] < shares[1] else 1
    sentences = sum(" " in cell for cell in columns[1 - label][1:])
    if shares[label] > _RECURS or shares[1 - label] < _VARIES or sentences < len(rows) / 2:
        return reading
    header = reading.header
    if header is None:
        header = columns[label][0] not in columns[label][1:]
    first = "names the columns" if header else "is a text as the others"
    columns_are = f"column {1 - label} is read as the text, column {label} as the label"
    found.notes[f"{where}: {columns_are}, counted from 0; the first row {first}"] = None
    return replace(reading, text=(1 - label,), label=label, header=header)


def _has_header(head: list[list[str]], reading: Reading, where: str) -> bool:
    stated = [column for column in (*(reading.text or ()), reading.label) if isinstance(column, str)]
    if stated:
        return True
    if _is_usual(head[0]):
        return True
    if reading.text is not None and reading.label is not None:
        return False  # both by place, and no name of a kind that is known
    what = f"whether its first row, {escaped(' | '.join(head[0]))[:80]}, is a header cannot be decided"
    raise DataError(Problem(where, what, "header: true or false, and text_column and label_column"))


def _found_delimiter(file: TextFile, encoding: str, quoting: bool) -> str:
    """Return the delimiter by which most of the first rows have the same number of columns, two or more.

    Raises DataError where there is none: in a few rows that differ something is wrong, which is reported of each.
    """
    best: tuple[float, int, str] | None = None
    for delimiter in _DELIMITERS:
        rows = _cells(file, encoding, delimiter, quoting, limit=_HEAD_ROWS, strict=False)  # by another's quotes, too
        widths = [len(cells) for _, cells in rows]
        if not widths:
            raise DataError(Problem(str(file.shown), "is empty"))
        width, times = Counter(widths).most_common(1)[0]
        share = times / len(widths)
        if width > 1 and share >= _MOST and (best is None or (share, width) > best[:2]):
            best = share, width, delimiter
    if best is None:
        what = "no delimiter gives its first rows the same number of columns"
        raise DataError(Problem(str(file.shown), what, "the option `delimiter`"))
    return best[2]


def _cells(
    file: TextFile, encoding: str, delimiter: str, quoting: bool, limit: int | None = None, strict: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line from 1, cells) of the rows that are not blank, at most `limit`.

    `strict`: raises DataError where quotes do not close at the end of a cell: one left open takes all rows behind it.
    """
    before = csv.field_size_limit(_LARGEST_CELL)
    count = last = 0
    try:
        with open_text(file, encoding) as text:
            rows = csv.reader(
                text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE, strict=strict
            )
            for cells in rows:
                last = rows.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                yield rows.line_num, cells
                count += 1
                if count == limit:
                    return
    except csv.Error as error:
        where, what = f"{file.shown}: line {last + 1}", f"begins a row that cannot be read: {error}"
        allowed = "quotes inside a quoted cell doubled, or quoting: false where they are part of the texts"
        raise DataError(Problem(where, what, allowed)) from error
    finally:
        csv.field_size_limit(before)


# -- JSON lines --------------------------------------------------------------------------------------------------------


def json_objects(file: TextFile, encoding: str | None, found: Found, problems: Problems) -> Iterator[tuple[int, Any]]:
    """Yield (line from 1, object) of a file of one JSON object a line, or (number from 1, object) of one array of them.

    Adds to `problems` the lines that hold none.
    """
    encoding = found_encoding(file, encoding, found)
    if is_json_array(file, encoding):
        yield from _json_array(file, encoding, problems)
        return
    with open_text(file, encoding) as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
                if not isinstance(item, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError) as error:
                problems.add(f"{file.shown}: line {number}", f"is no JSON object: {error}", "one object a line")
                continue
            yield number, item


def is_json_array(file: TextFile, encoding: str) -> bool:
    """Whether a `.json` file is one array and not an object a line."""
    if file.suffix != ".json":
        return False
    with open_text(file, encoding) as text:
        return next((line.lstrip() for line in text if line.strip()), "").startswith("[")


def _json_array(file: TextFile, encoding: str, problems: Problems) -> Iterator[tuple[int, Any]]:
    with open_text(file, encoding) as text:
        try:
            items = json.load(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                Problem(str(file.shown), f"is no JSON: {error}", "an array, or one object a line")
            ) from None
    for number, item in enumerate(items, 1):
        if isinstance(item, dict):
            yield number, item
        else:
            problems.add(f"{file.shown}: item {number}", "is no JSON object", "an array of objects")


def _flat(item: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Return the fields of an object, and those of objects in it by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in item.items():
        flat[before + name] = value
        if isinstance(value, dict):
            flat |= {inner: one for inner, one in _flat(value, f"{before}{name}.").items() if inner not in item}
    return flat


def _json_rows(file: TextFile, reading: Reading, found: Found, problems: Problems) -> Iterator[Row]:
    where = str(file.shown)
    names: list[str] = []
    columns: _Columns | None = None
    found.declared.setdefault(file.shown, None)
    for number, stated in json_objects(file, reading.encoding, found, problems):
        item = _flat(stated)
        if columns is None:
            names = list(item)
            columns = _columns(names, reading, where)
        wanted = [names[place] for place in (*columns.texts, columns.label)]
        absent = [name for name in wanted if name not in item]
        if absent:
            problems.add(f"{where}: line {number}", f"has no {', '.join(absent)}", _listed(list(item)))
            continue
        yield from _checked_row(f"{where}: line {number}", [item[name] for name in wanted], columns.lists, problems)


def _checked_row(where: str, cells: list[Any], lists: bool, problems: Problems) -> Iterator[Row]:
    """Yield the row of these cells, texts first, unless its text is none, which is added to `problems`."""
    label = len(cells) - 1
    try:
        yield _row(where, cells, _Columns(tuple(range(label)), label, lists))
    except ValueError as error:
        problems.add(where, str(error), "a text")


# -- parquet and arrow -------------------------------------------------------------------------------------------------


def arrow_batches(
    file: TextFile, wanted: Sequence[str] | None = None
) -> Iterator[tuple[list[str], dict[bytes, bytes], dict[str, list[Any]]]]:
    """Yield (names of all columns, metadata, the `wanted` columns) of a parquet or arrow file, some rows at a time.

    `wanted` None: no columns. Raises DataError.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise DataError('reading parquet and arrow files needs pyarrow: pip install "kdnas[parquet]"') from error
    try:
        with file.open() as stream:
            if file.suffix == ".parquet":
                opened = pyarrow.parquet.ParquetFile(stream)
                schema = opened.schema_arrow
                batches = opened.iter_batches(batch_size=_ROWS, columns=list(wanted or ()))
            else:
                try:
                    opened = pyarrow.ipc.open_stream(stream)
                except pyarrow.ArrowInvalid:
                    stream.seek(0)
                    opened = pyarrow.ipc.open_file(stream)
                    batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
                else:
                    batches = iter(opened)
                schema = opened.schema
            names = list(schema.names)
            if wanted is None:
                yield names, schema.metadata or {}, {}
                return
            for batch in batches:
                yield names, schema.metadata or {}, {name: batch.column(name).to_pylist() for name in wanted}
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise DataError(Problem(str(file.shown), f"is no {file.suffix} file or is damaged: {error}")) from error


def _arrow_rows(file: TextFile, reading: Reading, found: Found, problems: Problems) -> Iterator[Row]:
    where = str(file.shown)
    names, metadata, _ = next(arrow_batches(file))
    columns = _columns(names, reading, where)
    wanted = [names[place] for place in (*columns.texts, columns.label)]
    found.declared[file.shown] = declared_names(metadata, wanted[-1])
    number = 0
    for _, _, cells in arrow_batches(file, wanted):
        for row in zip(*(cells[name] for name in wanted), strict=True):
            yield from _checked_row(f"{where}: row {number}", list(row), columns.lists, problems)
            number += 1
