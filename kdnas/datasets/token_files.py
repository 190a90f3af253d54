"""Files of tokens that another program has written: for each split one stream, as nanoGPT's train.bin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from kdnas.core.text import CorpusData
from kdnas.datasets import DATASETS
from kdnas.datasets._corpus_cache import (
    LONGEST_UNSTATED,
    BlockLength,
    BlockWriter,
    block_digests,
    finish,
    leaks,
    open_corpus,
)
from kdnas.datasets._entries import kept_entry
from kdnas.datasets._inputs import file_identity, locate, name_of
from kdnas.datasets._token_cache import SPLITS, Split, checked_length, tokenizer_identity
from kdnas.errors import DataError, Problem
from kdnas.tokenizing import Tokenizer, token_dtype

_FORMAT = 2
_CHUNK = 1 << 20
_DECODED = 100_000


@DATASETS.register
def token_files(
    data_root: Path,
    cache: Path,
    *,
    train: str,
    test: str,
    tokenizer: str,
    validation: str | None = None,
    length: BlockLength | None = None,
    dtype: Literal["uint16", "uint32", "int32", "int64"] = "uint16",
) -> CorpusData:
    """Streams of tokens, end tokens among them: raw numbers as nanoGPT's train.bin, or .npy arrays [S].

    Args:
        data_root: The folder that files and tokenizer are relative to.
        cache: kdnas's cache folder.
        train: The training tokens.
        test: The test tokens.
        tokenizer: The Hugging Face folder of the tokenizer that made them.
        validation: The tokens that students are scored on; None: a share of the blocks in a row.
        length: Tokens of a block. None: as many as the model of the tokenizer takes, at most 2,048.
        dtype: Of raw numbers; an .npy file has its own.

    Raises DataError naming files that hold no tokens, or others than the tokenizer's.
    """
    stated: dict[Split, str | None] = {"train": train, "validation": validation, "test": test}
    files = {split: locate(data_root, name, "a file of tokens") for split, name in stated.items() if name is not None}
    identity = {
        "format": _FORMAT,
        "tokens": {split: file_identity(path) for split, path in files.items()},
        "tokenizer": tokenizer_identity(tokenizer, data_root),
        "length": length,
        "dtype": dtype,
    }
    name = name_of(files["train"], data_root)

    def make(work: Path) -> None:
        known = Tokenizer(data_root / tokenizer)
        known.save(work / "tokenizer")
        _copy(name, {split: _stream(path, dtype) for split, path in files.items()}, files, known, length, work, cache)

    return kept_entry(name, cache, identity, make, open_corpus)


def _stream(path: Path, dtype: str) -> np.ndarray:
    """Return the tokens [S] in a file as a memory map. Raises DataError."""
    try:
        if path.suffix == ".npy":
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            tokens = np.memmap(path, dtype=dtype, mode="r")
    except (OSError, ValueError, EOFError) as error:
        what = f"holds no {'array' if path.suffix == '.npy' else dtype} of tokens: {error}"
        raise DataError(Problem(str(path), what)) from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(Problem(str(path), f"holds {tokens.dtype} {list(tokens.shape)}", "whole numbers [S]"))
    return tokens


def _copy(
    name: str,
    streams: Mapping[Split, np.ndarray],
    files: Mapping[Split, Path],
    tokenizer: Tokenizer,
    length: int | None,
    work: Path,
    cache: Path,
) -> None:
    size, kind = checked_length(length, tokenizer, LONGEST_UNSTATED), token_dtype(tokenizer.vocabulary)
    writers: dict[Split, BlockWriter] = {}
    for split in SPLITS:
        tokens = streams.get(split, np.empty(0, dtype=kind))
        decoded = tokenizer.decode(tokens[:_DECODED].tolist()) if _in_range(tokens[:_DECODED], tokenizer) else ""
        per_token = len(decoded.encode()) / max(1, min(len(tokens), _DECODED))
        writer = writers[split] = BlockWriter(work / f"{split}.bin", kind, size, int(len(tokens) * per_token), cache)
        for start in range(0, len(tokens), _CHUNK):
            chunk = np.asarray(tokens[start : start + _CHUNK])
            if not _in_range(chunk, tokenizer):
                place = start + int(np.argmax((chunk < 0) | (chunk >= tokenizer.vocabulary)))
                what = f"token {tokens[place]} at place {place:,}, and the tokenizer has {tokenizer.vocabulary:,}"
                raise DataError(Problem(str(files[split]), what, "the tokenizer that made them, or another dtype"))
            writer.extend(chunk, int(len(chunk) * per_token))
            writer.documents += int(np.count_nonzero(chunk == tokenizer.end))
            writer.check_room()
    contents = {split: block_digests(tokens, size) for split, tokens in streams.items()}
    finish(name, work, writers, tokenizer, leaks(contents, "block"))


def _in_range(tokens: np.ndarray, tokenizer: Tokenizer) -> bool:
    return not len(tokens) or (int(tokens.min()) >= 0 and int(tokens.max()) < tokenizer.vocabulary)
