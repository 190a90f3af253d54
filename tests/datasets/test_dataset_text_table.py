"""Labelled texts: every format gives the same samples, and what is wrong with a file is one clear line."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import signal
import tarfile
from collections import namedtuple
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdnas.core.text import Padded, Sequences, TextData
from kdnas.datasets import DATASETS
from kdnas.errors import DataError, InputError
from kdnas.tokenizing import Tokenizer

pytest.importorskip("tokenizers")

TEXTS = ["a fine day", "no good at all", "fine, and then some", "bad; worse", 'he said "no"', "Grüße"] * 2
LABELS = ["good", "bad", "good", "bad", "bad", "good"] * 2


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def opened(root: Path, **options: Any) -> TextData:
    stated = {"tokenizer": "bytes", "test_fraction": 0.34, **options}
    data: TextData = DATASETS.build("text_table", root, root.parent / "cache", **stated)
    return data


def texts_of(data: TextData) -> list[tuple[str, str]]:
    """Return (text, class) of every sample, sorted: what the tokens stand for."""
    tokenizer, found = Tokenizer(data.tokenizer), []
    for part in (data.train, data.test):
        for tokens, mask, label in zip(part.inputs["tokens"], part.inputs["mask"], part.targets, strict=True):  # type: ignore[call-overload]
            found.append((tokenizer.decode(tokens[mask.astype(bool)].tolist()), data.class_names[label]))
    return sorted(found)


EXPECTED = sorted(zip(TEXTS, LABELS, strict=True))


def separated(delimiter: str, header: str = "text{}label") -> str:
    quoted = ['"{}"'.format(text.replace('"', '""')) for text in TEXTS]
    rows = [f"{text}{delimiter}{label}" for text, label in zip(quoted, LABELS, strict=True)]
    return "\n".join(([header.format(delimiter)] if header else []) + rows) + "\n"


@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_a_csv_file_whose_delimiter_is_found(root: Path, delimiter: str) -> None:
    (root / "a.csv").write_text(separated(delimiter), encoding="utf-8")
    assert texts_of(opened(root, train="a.csv")) == EXPECTED


def test_a_tsv_file_holds_quotes_as_they_stand(root: Path) -> None:
    rows = [f"{label}\t{text}" for text, label in zip(TEXTS, LABELS, strict=True)]
    (root / "a.tsv").write_text("\n".join(["label\ttext", *rows]), encoding="utf-8")
    assert texts_of(opened(root, train="a.tsv")) == EXPECTED


def test_columns_of_a_file_without_a_header_are_told_by_their_places(root: Path) -> None:
    (root / "a.csv").write_text(separated(",", header=""), encoding="utf-8")
    assert texts_of(opened(root, train="a.csv", text_column=0, label_column=1)) == EXPECTED
    with pytest.raises(DataError, match="is a header cannot be decided"):
        opened(root, train="a.csv")
    with pytest.raises(DataError, match="its columns have no names"):
        opened(root, train="a.csv", header=False)


@pytest.mark.parametrize("header", ["Bewertung;Stimmung", ""])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
def test_two_columns_of_any_name_are_told_by_what_recurs(root: Path, header: str, encoding: str) -> None:
    rows = [f"Der Kaffee Nr. {number} war {'schön' if number % 3 else 'öde'};{number % 3 > 0}" for number in range(60)]
    (root / "a.csv").write_text("\n".join([*([header] if header else []), *rows]), encoding=encoding)
    data = opened(root, train="a.csv")
    assert texts_of(data)[0] == ("Der Kaffee Nr. 0 war öde", "False")
    assert len(texts_of(data)) == 60
    assert any("column 0 is read as the text, column 1 as the label" in note for note in data.notes)


@pytest.mark.parametrize("made", ["{0};{1}", "word{0};word{0}", "a text {0};label {0}", "a text {0};{1};{1}"])
def test_columns_that_do_not_tell_are_to_be_stated(root: Path, made: str) -> None:
    (root / "a.csv").write_text("\n".join(made.format(number, number % 2) for number in range(60)))
    with pytest.raises(DataError, match="is a header cannot be decided"):
        opened(root, train="a.csv")


def test_json_lines(root: Path) -> None:
    rows = [json.dumps({"label": label, "text": text}) for text, label in zip(TEXTS, LABELS, strict=True)]
    (root / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert texts_of(opened(root, train="a.jsonl")) == EXPECTED


def arrow_table(labels: list[Any], names: list[str] | None) -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": TEXTS[: len(labels)], "label": labels})
    if names is None:
        return table
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.mark.parametrize("names", [["good", "bad"], None])
def test_parquet_with_the_names_of_its_metadata(root: Path, names: list[str] | None) -> None:
    from pyarrow import parquet

    table = arrow_table([int(label == "bad") for label in LABELS], names)
    parquet.write_table(table, root / "a.parquet")
    data = opened(root, train="a.parquet")
    if names is None:
        assert data.class_names == ("0", "1")
    else:
        assert data.class_names == ("good", "bad")
        assert texts_of(data) == EXPECTED


def test_a_folder_that_save_to_disk_wrote(root: Path) -> None:
    import pyarrow

    table = arrow_table([int(label == "bad") for label in LABELS], ["good", "bad"])
    split = root / "saved" / "train"
    split.mkdir(parents=True)
    with pyarrow.ipc.new_stream(str(split / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    (split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    assert texts_of(opened(root, train="saved/train")) == EXPECTED
    with pytest.raises(DataError, match=r"holds several splits \(allowed: saved/train\)"):
        opened(root, train="saved")


def test_what_the_data_are_called(root: Path) -> None:
    (root / "reviews").mkdir()
    for place in ("a.csv", "reviews/a.csv"):
        (root / place).write_text(separated(","), encoding="utf-8")
    assert opened(root, train="a.csv").name == "a.csv"
    assert opened(root, train="reviews/a.csv").name == "reviews"


def test_a_member_of_an_archive(root: Path) -> None:
    (root / "a.csv").write_text(separated(","), encoding="utf-8")
    with tarfile.open(root / "all.tar.xz", "w:xz") as archive:
        archive.add(root / "a.csv", "inner/a.csv")
    assert texts_of(opened(root, train="all.tar.xz/inner/a.csv")) == EXPECTED
    with pytest.raises(DataError, match="has no member 'b.csv'"):
        opened(root, train="all.tar.xz/b.csv")


def test_two_texts_in_a_row(root: Path, data_root: Path) -> None:
    rows = ["premise,hypothesis,label"] + [f"it rains {n},it is wet {n},{'yn'[n % 2]}" for n in range(8)]
    (root / "a.csv").write_text("\n".join(rows))
    data = opened(root, train="a.csv", tokenizer=str(data_root / "teachers/minilm_l6_sst2"))
    assert [entry.name for entry in data.task.inputs] == ["tokens", "mask", "segments"]
    tokens, segments = (np.asarray(data.train.inputs[name][0]) for name in ("tokens", "segments"))
    second = tokens.tolist().index(102) + 1  # after the first [SEP]
    assert segments[:second].sum() == 0
    assert segments.sum() == len(np.flatnonzero(tokens)) - second


def test_stated_validation_texts_are_those_that_students_are_scored_on(root: Path) -> None:
    for name, count in (("train", 12), ("dev", 3), ("test", 2)):
        rows = [f"{name} {number},{number % 2}" for number in range(count)]
        (root / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    data = opened(root, train="train.csv", validation="dev.csv", test="test.csv", test_fraction=None)
    assert (len(data.train), data.stated_validation, len(data.test)) == (15, 3, 2)
    assert [text for text, _ in texts_of(data)[:3]] == ["dev 0", "dev 1", "dev 2"]
    assert not [note for note in data.notes if "as well" in note]
    (root / "dev.csv").write_text("text,label\ntrain 4,0\ndev 1,1\ntrain 7,1")
    data = opened(root, train="train.csv", validation="dev.csv", test="test.csv", test_fraction=None)
    assert "2 of 3 validation texts are training texts as well" in data.notes


def test_numbers_as_labels_are_classes_of_these_names_in_their_order(root: Path) -> None:
    rows = [f"text {number},{stars}" for number, stars in enumerate([10, 1, 5] * 4)]
    (root / "a.csv").write_text("\n".join(["text,stars", *rows]))
    assert opened(root, train="a.csv").class_names == ("1", "5", "10")


def test_it_is_tokenised_once_and_a_damaged_entry_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a.csv").write_text(separated(","), encoding="utf-8")
    first = opened(root, train="a.csv")
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode", lambda *given, **stated: pytest.fail("tokenised again"))
        assert opened(root, train="a.csv").fingerprint == first.fingerprint
    (entry,) = (root.parent / "cache" / "datasets").glob("*/tokens.bin")
    entry.write_bytes(entry.read_bytes()[:-1])
    assert texts_of(opened(root, train="a.csv")) == EXPECTED
    (root / "a.csv").write_text(separated(",").replace("fine", "fair"), encoding="utf-8")
    assert opened(root, train="a.csv").fingerprint != first.fingerprint


def test_a_tokenizer_trained_on_the_spot_opens_elsewhere(root: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (root / "a.csv").write_text(separated(",") + "".join(f"a fine day {n},good\n" for n in range(50)), encoding="utf-8")
    data = opened(root, train="a.csv", tokenizer={"type": "bpe", "vocabulary": 300})
    assert data.vocabulary == 300
    theirs = transformers.AutoTokenizer.from_pretrained(data.tokenizer)
    assert theirs("a fine day")["input_ids"] == list(Tokenizer(data.tokenizer).encode(["a fine day"], None)[0].ids)
    assert theirs.pad_token_id == Tokenizer(data.tokenizer).pad == 0


def test_rows_are_padded_as_they_are_written_out() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 20)
    stops = np.cumsum(lengths)
    kept = Sequences(rng.integers(1, 99, stops[-1]).astype(np.uint16), stops - lengths, stops)
    padded = Padded(kept, 6, fill=7)
    rows = [kept.values[kept.starts[n] : kept.stops[n]].tolist()[:6] for n in range(20)]
    expected = np.array([row + [7] * (6 - len(row)) for row in rows])
    for places in (slice(None), slice(3, 9), np.array([5, 2, 2]), 4):
        assert np.array_equal(padded[places], expected[places])
    assert np.array_equal(np.asarray(padded), expected)


# -- folders and functions ---------------------------------------------------------------------------------------------


def write_folder(root: Path) -> None:
    for number, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True)):
        folder = root / "all" / ("train" if number < 8 else "test") / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_of_class_folders_or_an_archive_of_it(root: Path, packed: bool) -> None:
    write_folder(root)
    if packed:
        with tarfile.open(root / "all.tar.gz", "w:gz") as archive:
            archive.add(root / "all", "all")
    path = "all.tar.gz" if packed else "all"
    data = DATASETS.build("text_folder", root, root.parent / "cache", path=path, tokenizer="bytes")
    assert texts_of(data) == EXPECTED
    assert (len(data.train), len(data.test)) == (8, 4)


def test_class_folders_alone_are_split_by_share(root: Path) -> None:
    write_folder(root)
    data = DATASETS.build(
        "text_folder", root, root.parent / "cache", path="all/train", tokenizer="bytes", test_fraction=0.25
    )
    assert (len(data.train), len(data.test)) == (6, 2)
    (root / "all/train/good/0.txt").write_bytes(b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe\n\xfc")
    with pytest.raises(DataError, match=r"good/0.txt: is not utf-8: line 2 \(byte 0xFC\)"):
        DATASETS.build("text_folder", root, root.parent / "cache", path="all", tokenizer="bytes")
    with pytest.raises(DataError, match="holds no class folders of .md files"):
        DATASETS.build("text_folder", root, root.parent / "cache", path="all", tokenizer="bytes", suffix=".md")


def test_what_a_function_returns_is_checked(root: Path) -> None:
    def returning(result: str) -> TextData:
        (root / f"own{abs(hash(result))}.py").write_text(f"def load(data_root):\n    return {result}\n")
        options = {"function": f"own{abs(hash(result))}.py:load", "tokenizer": "bytes"}
        data: TextData = DATASETS.build("text_module", root, root.parent / "cache", **options)
        return data

    data = returning("['a', 'b'], [1, 0], ['c'], [1], ['no', 'yes']")
    assert texts_of(data) == [("a", "yes"), ("b", "no"), ("c", "yes")]
    with pytest.raises(DataError, match="returned list"):
        returning("['a']")
    with pytest.raises(DataError, match="train: 1 labels for 2 texts"):
        returning("['a', 'b'], [1], ['c'], [1]")
    with pytest.raises(DataError, match="train 1: is int '3'"):
        returning("['a', 3], [1, 0], ['c'], [1]")
    with pytest.raises(DataError, match="train 1: has 1 text, the first one 2"):
        returning("[('a', 'b'), ('c',)], [1, 0], [('c', 'd')], [1]")
    with pytest.raises(DataError, match=r"train 0: is tuple '\(\)'"):
        returning("[(), ()], [1, 0], [()], [1]")
    for labels in ("[True, False]", "np.array([True, False])", "torch.tensor([True, False])"):
        lines = f"import numpy as np, torch\ndef load(data_root):\n    return ['a', 'b'], {labels}, ['c'], {labels}[:1]"
        name = f"of{abs(hash(labels))}.py"
        (root / name).write_text(lines)
        options = {"function": f"{name}:load", "tokenizer": "bytes"}
        data = DATASETS.build("text_module", root, root.parent / "cache", **options)
        assert texts_of(data) == [("a", "true"), ("b", "false"), ("c", "true")]


# -- bad input ---------------------------------------------------------------------------------------------------------


def complaint(root: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(root, **{"train": "a.csv", **options})
    return str(caught.value)


def test_mixed_encodings(root: Path) -> None:
    lines = ["text,label", *(f"Grüße {n},{n % 2}" for n in range(6))]
    mixed = [line.encode("cp1252" if number in (2, 4) else "utf-8") for number, line in enumerate(lines)]
    (root / "a.csv").write_bytes(b"\n".join(mixed))
    printed = complaint(root)
    assert "mixes encodings: some lines are UTF-8, 2 are not: line 3 (byte 0xFC), line 5 (byte 0xFC)" in printed
    assert "is not ascii: line 2 (byte 0xC3)" in complaint(root, encoding="ascii")
    assert "there is no 'utf-9'" in complaint(root, encoding="utf-9")
    (root / "a.csv").write_text("\n".join(lines), encoding="utf-16-le")
    assert "it is UTF-16 without a mark" in complaint(root)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_an_encoding_that_the_file_tells(root: Path, encoding: str) -> None:
    (root / "a.csv").write_text(separated(","), encoding=encoding)
    data = opened(root, train="a.csv")
    assert texts_of(data) == EXPECTED
    printed = [note for note in data.notes if "is read as" in note]
    assert [note.rpartition(" ")[2] for note in printed] == ([] if encoding == "utf-8-sig" else [encoding])


def test_empty_texts_are_left_out_and_said(root: Path) -> None:
    (root / "a.csv").write_text(separated(",") + '"",good\n" ",bad\n', encoding="utf-8")
    data = opened(root, train="a.csv")
    assert texts_of(data) == EXPECTED
    assert any("2 empty texts left out" in note and "line 14" in note for note in data.notes)
    (root / "a.csv").write_text("text,label\n" + '"",good\n" ",bad\n')
    assert "there are no training texts; 2 texts left out, which are empty" in complaint(root)


def test_texts_longer_than_the_model_takes_are_cut_and_counted(root: Path, data_root: Path) -> None:
    teacher = data_root / "teachers/gpt2_fairybooks"  # 256 positions
    (root / "a.csv").write_text(separated(",") + "long " * 400 + ",good\n", encoding="utf-8")
    data = opened(root, train="a.csv", tokenizer=str(teacher))
    assert data.length == 256
    assert "1 of 13 texts are longer than 256 tokens: their ends are cut off" in data.notes
    assert "257 tokens, and the model takes 256" in complaint(root, tokenizer=str(teacher), length=257)
    assert opened(root, train="a.csv", tokenizer=str(teacher), length=16).length == 16


def test_labels_that_training_does_not_have(root: Path) -> None:
    (root / "a.csv").write_text(separated(","), encoding="utf-8")
    (root / "b.csv").write_text("text,label\nso so,neutral\nfine,good\nmeh,neutral\n")
    printed = complaint(root, test="b.csv", test_fraction=None)
    assert "no training text of class 'neutral': 2 texts of it, the first at" in printed
    assert "b.csv: line 2" in printed


def test_one_class(root: Path) -> None:
    (root / "a.csv").write_text("text,label\na b,good\nc d,good\ne f,good\n")
    assert "there is only one class (good)" in complaint(root)


def test_a_row_that_is_not_like_the_others_is_told_by_its_line(root: Path) -> None:
    (root / "a.csv").write_text(separated(",") + "a,b,c\n")
    assert "line 14: has 3 columns, the first row 2" in complaint(root)
    (root / "a.csv").write_text("text,label\n" + "a day,good\n" * 9 + '"no end,good\n')
    assert "line 11: begins a row that cannot be read" in complaint(root)
    (root / "a.csv").write_text("\n \n")
    assert "a.csv: is empty" in complaint(root)


def test_the_label_is_not_the_text(root: Path) -> None:
    (root / "a.csv").write_text(separated(","))
    assert "label_column: 'text' is the text" in complaint(root, text_column="text", label_column="text")


def test_json_that_no_text_comes_of_is_told_by_its_line(root: Path) -> None:
    row = '{"text": "a day", "label": "good"}\n'
    (root / "a.jsonl").write_text(row * 4 + '{"text": "\\ud800 day", "label": "bad"}\n' + "[" * 10_000 + "\n")
    printed = complaint(root, train="a.jsonl")
    assert "line 5: holds half of a character, \\ud800" in printed
    assert "line 6: is no JSON object: maximum recursion depth exceeded" in printed


def test_duplicate_columns(root: Path) -> None:
    (root / "a.csv").write_text("text,label,text\na,good,b\nc,bad,d\n")
    assert "2 columns are called 'text'" in complaint(root)
    (root / "a.csv").write_text(separated(",", "text{0}label"), encoding="utf-8")
    assert "has no column 'body' (allowed: text, label)" in complaint(root, text_column="body")


def test_rows_of_another_width(root: Path) -> None:
    (root / "a.csv").write_text("text,label\na,good\nb, and c,bad\nd,bad\n")
    printed = complaint(root, delimiter=",")
    assert "line 3: has 3 columns, the first row 2 (allowed: quotes around texts that hold a delimiter)" in printed


def test_a_tokenizer_without_pad_or_end_token(root: Path, data_root: Path) -> None:
    bare = root / "bare"
    bare.mkdir()
    shutil.copy(data_root / "teachers/gpt2_fairybooks/tokenizer.json", bare)
    tokenizer = Tokenizer(bare)
    assert (tokenizer.pad, tokenizer.end) == (None, None)
    (root / "a.csv").write_text(separated(","), encoding="utf-8")
    data = opened(root, train="a.csv", tokenizer="bare")
    assert any("names no pad token" in note for note in data.notes)
    assert not np.asarray(data.train.inputs["mask"])[0, -1]


def test_a_vocabulary_that_does_not_match_the_embedding(root: Path, data_root: Path) -> None:
    shutil.copytree(data_root / "teachers/gpt2_fairybooks", root / "teacher")
    config = root / "teacher/config.json"
    config.chmod(0o644)
    (root / "a.csv").write_text(separated(","), encoding="utf-8")
    config.unlink()
    config.write_text(json.dumps({"model_type": "gpt2", "vocab_size": 4000}))
    printed = complaint(root, tokenizer="teacher")
    assert "its tokenizer has 4,096 tokens, and its model has embeddings for 4,000" in printed
    config.write_text(json.dumps({"model_type": "gpt2", "vocab_size": 4160}))  # rows filled up, as for tensor cores
    assert opened(root, train="a.csv", tokenizer="teacher").vocabulary == 4160


def test_nan_in_a_label_of_parquet(root: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(arrow_table([0.0, 1.0, float("nan"), 1.0, None, 0.0], None), root / "a.parquet")
    printed = complaint(root, train="a.parquet")
    assert "a.parquet: row 2: has no label" in printed
    assert "a.parquet: row 4: has no label" in printed
    parquet.write_table(arrow_table([0.0, 1.5, 1.0, 0.0], None), root / "a.parquet")
    assert "its label is 1.5: labels are classes here" in complaint(root, train="a.parquet", labels="classes")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_labels_with_fractions_are_numbers_to_be_predicted(root: Path, suffix: str) -> None:
    from pyarrow import parquet

    labels = [0.5, 1.0, 4.75, 5.0, 3.0, 0.0] * 2
    if suffix == "parquet":
        parquet.write_table(arrow_table(labels, None), root / "a.parquet")
    else:
        rows = [f'"{text.replace(chr(34), "")}",{label}' for text, label in zip(TEXTS, labels, strict=True)]
        (root / "a.csv").write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    data = opened(root, train=f"a.{suffix}")
    assert data.predicts_values
    assert data.class_names == ()
    assert data.train.targets.dtype == np.float32
    assert sorted([*data.train.targets, *data.test.targets]) == sorted(labels)
    assert (data.task.kind, data.task.outputs, data.task.score.name) == ("text_regression", 1, "spearman")


def test_whole_numbers_are_predicted_where_that_is_stated(root: Path) -> None:
    rows = "\n".join(f"{text.replace(',', '')},{number % 4}" for number, text in enumerate(TEXTS))
    (root / "a.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    assert opened(root, train="a.csv").class_names == ("0", "1", "2", "3")
    assert opened(root, train="a.csv", labels="values").predicts_values
    printed = complaint(root, labels="values", class_names=("a", "b"))
    assert "labels are values, which have no names" in printed
    wholes = rows.replace(",1\n", ",1.0\n")  # as a table of floats is written: still classes
    (root / "a.csv").write_text(f"text,label\n{wholes}", encoding="utf-8")
    assert opened(root, train="a.csv").class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(("wrong", "shown"), [("nan", "nan"), ("inf", "inf"), ("good", "good")])
def test_what_is_no_number_to_be_predicted_is_named(root: Path, wrong: str, shown: str) -> None:
    rows = [f"text {number},{number / 4}" for number in range(12)]
    rows[7] = f"text 7,{wrong}"
    (root / "a.csv").write_text("text,label\n" + "\n".join(rows))
    assert f"a.csv: line 9: its label is {shown}, and labels are numbers" in complaint(root, labels="values")
    (root / "a.csv").write_text("text,label\n" + "\n".join(f"text {number},2.5" for number in range(12)))
    assert "every label is 2.5: nothing is there to predict" in complaint(root)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["1,5", "2,0", "3,25"], [1.5, 2.0, 3.25]),  # as written in most of Europe
        ([".5", "-2.", "1e1"], [0.5, -2.0, 10.0]),
        (["1,000", "2,000", "5"], ["1,000", "2,000", "5"]),  # of thousands, perhaps
        (["1,5", "2.5", "3"], ["1,5", "2.5", "3"]),
        (["01", "1", "2"], ["01", "1", "2"]),  # names, of which none becomes another
        (["1_2", "12", "1_0"], ["12", "1_0", "1_2"]),
    ],
)
def test_which_labels_are_numbers(root: Path, labels: list[str], found: list[Any]) -> None:
    csv_of(root / "a.csv", [(f"text {number}", labels[number % 3]) for number in range(12)])
    data = opened(root, train="a.csv")
    assert (list(data.class_names) or sorted(set(data.train.targets.tolist()), key=found.index)) == found


def test_decimals_of_parquet(root: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, each, classes in (("whole", 1, ("0", "1", "2")), ("parts", 4, ())):
        labels = pa.array([Decimal(number % 3) / each for number in range(12)])
        pq.write_table(pa.table({"text": [f"text {number}" for number in range(12)], "label": labels}), root / name)
        shutil.move(root / name, root / f"{name}.parquet")
        assert opened(root, train=f"{name}.parquet").class_names == classes


@pytest.mark.parametrize("wrong", ['a,"never closed', 'a,"closed" too early', 'a,"back\\"slash, it is"'])
def test_quotes_that_do_not_close_where_a_cell_ends(root: Path, wrong: str) -> None:
    rows = [f"{'ab'[number % 2]},text {number}" for number in range(30)]
    rows[25] = wrong
    (root / "a.csv").write_text("label,text\n" + "\n".join(rows) + "\n", encoding="utf-8")
    printed = complaint(root, train="a.csv")
    assert "a.csv: line 27: begins a row that cannot be read" in printed
    assert "quoting: false" in printed
    (root / "a.csv").write_text("label,text\n" + "\n".join(rows[:25]) + '\na,"as it is\n', encoding="utf-8")
    assert ('"as it is', "a") in texts_of(opened(root, train="a.csv", quoting=False))


def test_labels_that_are_hardly_classes(root: Path) -> None:
    csv_of(root / "a.csv", [(f"text {number}", f"name {number}") for number in range(12)])
    assert "12 classes of 12 texts" in complaint(root, train="a.csv")
    csv_of(root / "a.csv", [(f"text {number}", f"name {number // 3}") for number in range(24)])
    assert any("8 classes of 24 texts, such as name 0" in note for note in opened(root, train="a.csv").notes)


def test_too_little_disk_is_told_before_all_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a.csv").write_text("text,label\n" + "".join(f"text number {n},{n % 2}\n" for n in range(5000)))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 50_000))
    printed = complaint(root)
    assert "has 0 MB free, and the tokens need about 0 MB" in printed
    assert "KDNAS_CACHE names another folder" in printed
    assert not list((root.parent / "cache" / "datasets").glob("*/"))


def test_a_disk_that_fills_while_texts_are_read(root: Path) -> None:
    """Files may not grow beyond 64 KB: writing fails as it does where a disk is full."""
    (root / "a.csv").write_text("text,label\n" + "".join(f"text number {n},{n % 2}\n" for n in range(20_000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    try:
        printed = complaint(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "cannot keep the data here as they are read: " in printed
    assert "KDNAS_CACHE names another" in printed
    assert not list((root.parent / "cache" / "datasets").glob("*/"))


def test_what_is_no_tokenizer(root: Path) -> None:
    (root / "a.csv").write_text(separated(","), encoding="utf-8")
    (root / "empty").mkdir()
    assert "holds no tokenizer" in complaint(root, tokenizer="empty")
    assert "there is no such folder" in complaint(root, tokenizer="nowhere")
    (root / "empty/tokenizer.json").write_text("{}")
    assert "is damaged" in complaint(root, tokenizer="empty")


# -- what says nothing wrong and is easily read wrongly ----------------------------------------------------------------


def csv_of(path: Path, rows: list[tuple[Any, ...]], names: tuple[str, ...] = ("text", "label")) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([names, *rows])


def test_quoted_line_ends_and_columns_in_any_place(root: Path) -> None:
    rows = [
        (number, label, f"{text}\nand, a second line", "x")
        for number, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))
    ]
    csv_of(root / "a.csv", rows, ("id", "Label", "Text", "more"))
    expected = sorted((f"{text}\nand, a second line", label) for text, label in zip(TEXTS, LABELS, strict=True))
    assert texts_of(opened(root, train="a.csv")) == expected


def test_a_tsv_file_of_windows_and_one_that_looks_quoted(root: Path) -> None:
    rows = [f"{label}\t{text}" for text, label in zip(TEXTS, LABELS, strict=True)]
    (root / "a.tsv").write_bytes("\r\n".join(["label\ttext", *rows, ""]).encode())
    data = opened(root, train="a.tsv")
    assert texts_of(data) == EXPECTED
    assert not any("quotes" in note for note in data.notes)
    (root / "b.tsv").write_text(separated("\t"), encoding="utf-8")
    assert any("quotes around a text" in note for note in opened(root, train="b.tsv").notes)
    assert texts_of(opened(root, train="b.tsv", quoting=True)) == EXPECTED


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_that_is_one_array_and_fields_inside_others(root: Path, indent: int | None) -> None:
    items = [{"data": {"text": text}, "meta": {"y": label}} for text, label in zip(TEXTS, LABELS, strict=True)]
    (root / "a.json").write_text(json.dumps(items, indent=indent), encoding="utf-8")
    data = opened(root, train="a.json", text_column="data.text", label_column="meta.y")
    assert texts_of(data) == EXPECTED
    with pytest.raises(DataError, match=r"no column is called(.|\n)*data\.text"):
        opened(root, train="a.json")
    (root / "b.json").write_text(json.dumps([*items, 3]), encoding="utf-8")
    with pytest.raises(DataError, match="item 13: is no JSON object"):
        opened(root, train="b.json", text_column="data.text", label_column="meta.y")


def test_parquet_of_dictionaries_of_truth_values_and_of_whole_floats(root: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    good = [label == "good" for label in LABELS]
    for number, (labels, names) in enumerate(
        [
            (pa.array(LABELS).dictionary_encode(), ("bad", "good")),
            (pa.array(good), ("false", "true")),
            (pa.array([float(one) for one in good]), ("0", "1")),
        ]
    ):
        table = pa.table({"text": pa.array(TEXTS).dictionary_encode(), "label": labels})
        pq.write_table(table, root / f"{number}.parquet")
        expected = sorted((text, names[one]) for text, one in zip(TEXTS, good, strict=True))
        assert texts_of(opened(root, train=f"{number}.parquet")) == expected


def test_a_dictionary_of_splits_that_save_to_disk_wrote_names_them(root: Path) -> None:
    for split in ("train", "test"):
        (root / "saved" / split).mkdir(parents=True)
        (root / "saved" / split / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds several splits.*saved/test, saved/train"):
        opened(root, train="saved")


def test_texts_that_occur_twice_and_contradict_each_other_are_told(root: Path) -> None:
    csv_of(root / "a.csv", [*zip(TEXTS[:6], LABELS[:6], strict=True), (TEXTS[0], "bad"), (TEXTS[1], LABELS[1])])
    csv_of(root / "b.csv", [(TEXTS[2], LABELS[2]), ("not seen before", "bad")])
    notes = opened(root, train="a.csv", test="b.csv", test_fraction=None).notes
    assert any(note.startswith("2 of 8 training texts repeat others") for note in notes)
    assert "1 of 2 test texts are training texts as well" in notes
    assert "1 text has different labels in different rows" in notes


def test_names_of_classes_that_are_hardly_meant_so(root: Path) -> None:
    labels = ["Good", "good", "NA", "bad"] * 3
    csv_of(root / "a.csv", list(zip([f"text {number}" for number in range(12)], labels, strict=True)))
    notes = opened(root, train="a.csv").notes
    assert any("capitals and spaces are different ones: Good, good" in note for note in notes)
    assert any("a class is called NA" in note for note in notes)
