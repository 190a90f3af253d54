"""Running text, tokenised once into blocks that are memory-mapped ever after.

    <cache>/datasets/<key>/train.bin     uint16 or uint32 [N, T + 1], blocks to train on, then those to validate on
                           test.bin      the same of the test text
                           tokenizer/    as `AutoTokenizer.from_pretrained` opens it
                           meta.json     counts, lengths, fingerprint, notes

Documents stand one after the other, each closed by the end token, and the stream is cut into blocks of T tokens without
regard to them. A block has one token more than that, with which the next one begins: what follows its last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from kdnas.core.data import Samples
from kdnas.core.seeds import derive_seed
from kdnas.core.text import CorpusData
from kdnas.core.words import counted
from kdnas.datasets._entries import META, content_hash, kept_entry
from kdnas.datasets._inputs import Problems
from kdnas.datasets._tables import Found
from kdnas.datasets._token_cache import (
    SPLITS,
    Split,
    TokenizerOption,
    TokenWriter,
    checked_length,
    mapped,
    opened_tokenizer,
    tokenizer_identity,
)
from kdnas.errors import DataError, Problem
from kdnas.tokenizing import Tokenizer, token_dtype

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
BlockLength = Annotated[int, Field(ge=4, le=1 << 20)]

_FORMAT = 2
LONGEST_UNSTATED = 2048
"""Tokens of a block that are not exceeded where nobody states its length."""
_PIECES = 256


@dataclass(frozen=True)
class Piece:
    """Some text of a document, and whether the document ends with it."""

    text: str
    ends: bool


@dataclass(frozen=True)
class Corpus:
    """Documents as a data set's files give them. `pieces` reads the files of a split anew at each call.

    `shares` are of the training documents: of a split without files, how many belong to it.
    """

    name: str
    identity: Mapping[str, Any]
    pieces: Callable[[Split, Found, Problems], Iterator[Piece]]
    shares: Mapping[Split, float]
    bytes: int


@dataclass(frozen=True)
class BlockReader:
    """How documents become blocks: by which tokenizer, how long, and what stands between documents."""

    tokenizer: TokenizerOption
    data_root: Path
    length: int | None = None
    end: str | None = None


def cached_corpus(corpus: Corpus, cache: Path, reader: BlockReader) -> CorpusData:
    """Return the blocks of `corpus` from the cache, tokenised first where they are not there. Raises DataError."""
    named = tokenizer_identity(reader.tokenizer, reader.data_root)
    identity = {"format": _FORMAT, "corpus": corpus.identity, "shares": dict(corpus.shares), "tokenizer": named}
    identity |= {"length": reader.length, "end": reader.end}

    def make(work: Path) -> None:
        _make(corpus, reader, work, cache)

    return kept_entry(corpus.name, cache, identity, make, open_corpus)


def _make(corpus: Corpus, reader: BlockReader, work: Path, cache: Path) -> None:
    found, problems = Found(), Problems()

    def training_texts() -> Iterator[str]:
        for piece in corpus.pieces("train", Found(), Problems()):
            yield piece.text

    folder = work / "tokenizer"
    tokenizer = opened_tokenizer(reader.tokenizer, reader.data_root, folder, training_texts, "running")
    end, length = _end(tokenizer, reader), checked_length(reader.length, tokenizer, LONGEST_UNSTATED)
    dtype = token_dtype(tokenizer.vocabulary)
    writers = {
        split: BlockWriter(work / f"{split}.bin", dtype, length, corpus.bytes if split == "train" else 0, cache)
        for split in SPLITS
    }
    digests = {split: array("Q") for split in SPLITS}
    draws = np.random.default_rng(derive_seed(0, "documents"))
    for split in SPLITS:
        if split in corpus.shares:
            continue
        going = split
        pieces = corpus.pieces(split, found, problems)
        begins, document = True, _digest()
        while chunk := _chunk(pieces):
            encoded = tokenizer.encode([piece.text for piece in chunk], None, special=False)
            for piece, one in zip(chunk, encoded, strict=True):
                if begins and split == "train":
                    going = _drawn(float(draws.random()), corpus.shares)
                content = piece.text.encode("utf-8", "surrogatepass")
                writers[going].extend(one.ids, len(content))
                document.update(content)
                begins = piece.ends
                if piece.ends:
                    writers[going].close_document(end)
                    digests[going].append(_number(document))
                    document = _digest()
            writers["train"].check_room()
    documents = sum(map(len, digests.values()))
    for split in corpus.shares:
        if documents and not digests[split]:
            what = f"none of {counted(documents, 'document')} fell to its share"
            allowed = "`documents` or `begins`, which say where one begins in plain text; or files of its own"
            problems.add(f"{corpus.name}: {split}", what, allowed)
    problems.raise_if_any()
    finish(corpus.name, work, writers, tokenizer, [*found.notes, *leaks(digests, "document")])


def _digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=8)


def _number(digest: hashlib.blake2b) -> int:
    return int.from_bytes(digest.digest(), "little")


def block_digests(tokens: np.ndarray, length: int) -> array[int]:
    """Return a number for the content of each whole block of `length` in a stream of tokens [S]."""
    digests = array("Q")
    for start in range(0, len(tokens) - length, length):
        digest = _digest()
        digest.update(np.asarray(tokens[start : start + length], dtype="<u4").tobytes())
        digests.append(_number(digest))
    return digests


def leaks(digests: Mapping[Split, array[int]], one: str) -> Iterator[str]:
    """Yield, for each split with such, how many of its documents or blocks are to be trained on as well.

    Args:
        digests: A number for the content of each.
        one: What each is, as "document".
    """
    trained = np.unique(np.asarray(digests["train"], dtype=np.uint64))
    for split in SPLITS[1:]:
        contents = np.asarray(digests.get(split, ()), dtype=np.uint64)
        twice = int(np.isin(contents, trained).sum())
        if twice:
            among = f"{'is' if twice == 1 else 'are'} among the training {one}s as well"
            yield f"{twice:,} of {counted(len(contents), f'{split} {one}')} {among}"


def _chunk(pieces: Iterator[Piece]) -> list[Piece]:
    chunk: list[Piece] = []
    size = 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece.text)
        if len(chunk) == _PIECES or size > _PIECES * 4096:
            break
    return chunk


def _drawn(number: float, shares: Mapping[Split, float]) -> Split:
    """Return the split of a document, given a number drawn from [0, 1)."""
    for split, share in shares.items():
        if number < share:
            return split
        number -= share
    return "train"


def _end(tokenizer: Tokenizer, reader: BlockReader) -> int:
    if reader.end is None:
        if tokenizer.end is None:
            what = "its tokenizer names no end token, which keeps documents apart"
            raise DataError(Problem(str(tokenizer.folder), what, "the option `end`: a token such as '<|endoftext|>'"))
        return tokenizer.end
    number = tokenizer.number(reader.end)
    if number is None:
        what = f"the tokenizer has no token {reader.end!r}"
        raise DataError(Problem("data.end", what, "a token as its vocabulary spells it"))
    return number


class BlockWriter:
    """Appends a stream of tokens to a file as blocks of T + 1 tokens, the last of each being the next one's first.

    Args:
        path: The file.
        dtype: Of a token.
        length: T.
        expected_bytes: Of all text that will come, as far as file sizes show.
        cache: The setting that decides the disk, for messages.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], length: int, expected_bytes: int, cache: Path):
        self.path, self.length, self.dtype = path, length, dtype
        self._writer = TokenWriter(path, dtype, expected_bytes, cache)
        self._waiting = np.empty(0, dtype=dtype)
        self.tokens = self.text_bytes = self.documents = self.blocks = 0

    def extend(self, ids: Sequence[int] | np.ndarray, text_bytes: int) -> None:
        """Append tokens that stand for so many bytes of text."""
        stream = np.concatenate([self._waiting, np.asarray(ids, dtype=self.dtype)])
        count = max(0, len(stream) - 1) // self.length
        if count:
            places = np.arange(count)[:, None] * self.length + np.arange(self.length + 1)
            self._writer.extend(stream[places].ravel())
        self._waiting = stream[count * self.length :]
        self.blocks += count
        self.tokens += len(ids)
        self.text_bytes += text_bytes

    def close_document(self, end: int) -> None:
        """Append the end token."""
        self.extend([end], 0)
        self.documents += 1

    def check_room(self) -> None:
        """Ask whether the disk has room for the rest. Raises DataError."""
        self._writer.check_room(self.text_bytes)

    def close(self) -> None:
        """Have everything on the disk; what is left of the stream makes no block."""
        self._writer.close()

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes that a token stands for, end tokens counted as tokens."""
        return self.text_bytes / max(1, self.tokens)


def finish(
    name: str, work: Path, writers: Mapping[Split, BlockWriter], tokenizer: Tokenizer, notes: Iterable[str]
) -> None:
    """Close the files of all splits and write their description. Raises DataError where one has no block."""
    for writer in writers.values():
        writer.close()
    problems = []
    for split, writer in writers.items():
        wanted = split != "validation" or writer.tokens
        if wanted and not writer.blocks:
            what = f"has {counted(writer.tokens, 'token')}, fewer than a block of {writer.length} and what follows it"
            problems.append(Problem(f"{name}: {split}", what, "more text, or a smaller `length`"))
    if problems:
        raise DataError(problems)
    train, validation, test = (writers[split] for split in SPLITS)
    with train.path.open("ab") as file, validation.path.open("rb") as more:
        shutil.copyfileobj(more, file)
    validation.path.unlink()
    scored = validation if validation.blocks else train
    meta = {
        "kind": "corpus",
        "name": name,
        "train_count": train.blocks + validation.blocks,
        "validation_count": validation.blocks,
        "test_count": test.blocks,
        "dtype": train.dtype.name,
        "length": train.length,
        "vocabulary": tokenizer.vocabulary,
        "bytes_per_token": [scored.bytes_per_token, test.bytes_per_token],
    }
    sizes = ", ".join(f"{writer.tokens:,} {split}" for split, writer in writers.items() if writer.tokens)
    documents = sum(writer.documents for writer in writers.values())
    per_token = f"{train.bytes_per_token:.2f} bytes a token"
    summary = f"tokens: {sizes}; {counted(documents, 'document')}, {per_token}, in blocks of {train.length}"
    fingerprint = content_hash(meta, [train.path, test.path])
    meta |= {"notes": [*notes, summary], "fingerprint": fingerprint}
    (work / META).write_text(json.dumps(meta, indent=1))


def open_corpus(folder: Path) -> CorpusData | None:
    """Return the entry in `folder`; None where there is none or it is damaged."""
    try:
        meta = json.loads((folder / META).read_text())
        if meta.get("kind") != "corpus" or not (folder / "tokenizer").is_dir():
            return None
        length = int(meta["length"])

        def samples(name: str) -> Samples:
            count = int(meta[f"{name}_count"])
            blocks = mapped(folder / f"{name}.bin", meta["dtype"], count * (length + 1)).reshape(count, length + 1)
            return Samples({"tokens": blocks[:, :-1]}, blocks[:, 1:])

        return CorpusData(
            name=meta["name"],
            class_names=(),
            train=samples("train"),
            test=samples("test"),
            fingerprint=meta["fingerprint"],
            notes=tuple(meta["notes"]),
            stated_validation=meta["validation_count"],
            tokenizer=folder / "tokenizer",
            vocabulary=meta["vocabulary"],
            length=length,
            bytes_per_token=tuple(meta["bytes_per_token"]),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
