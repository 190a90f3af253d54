"""How a text becomes tokens, defined once: data sets, scores of completions and exports read texts by the same files.

A tokenizer is a folder as Hugging Face writes it, `tokenizer.json` and the files next to it, or is trained on the spot.
No code of a model's folder runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdnas.errors import DataError, Problem

TOKENIZER_FILE = "tokenizer.json"
_SETTINGS_FILE = "tokenizer_config.json"
_MODEL_FILE = "config.json"
_FILES = (
    *(TOKENIZER_FILE, _SETTINGS_FILE, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.txt", "vocab.json", "merges.txt"),
)
_UNLIMITED = 1_000_000
"""Hugging Face writes 1e30 where a tokenizer has no maximum length."""
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "longformer", "mpnet"})
"""Models whose first positions, up to the pad token's number, are no text's."""
_BYTES = 256
Purpose = Literal["labelled", "running"]
"""What is read: texts with a label, or running text."""


@dataclass(frozen=True)
class Encoded:
    """A text as tokens: `ids`, which of two texts each belongs to, and whether the text was cut."""

    ids: Sequence[int]
    segments: Sequence[int]
    cut: bool


class Tokenizer:
    """A tokenizer, and the token settings of the model in whose folder it lies.

    Args:
        folder: Holds `tokenizer.json`, or files from which transformers makes one; next to it perhaps a model's
            `config.json`.

    Raises DataError where it holds no tokenizer, or one whose tokens the model has no embeddings for.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._settings = read_object(folder / _SETTINGS_FILE)
        self._model = read_object(folder / _MODEL_FILE)
        self._backend = _opened(folder)
        self._backend.no_padding()
        self._backend.no_truncation()
        self.size: int = self._backend.get_vocab_size()
        """The size of its vocabulary."""
        rows = self._model.get("vocab_size")
        if isinstance(rows, int) and rows < self.size:
            what = f"its tokenizer has {self.size:,} tokens, and its model has embeddings for {rows:,} (vocab_size)"
            raise DataError(Problem(str(folder), what, "the tokenizer that the model was trained with"))
        self.vocabulary: int = rows if isinstance(rows, int) else self.size
        """Rows of the embedding: the model's, which may be more than the tokens."""

    @cached_property
    def positions(self) -> int | None:
        """The longest text in tokens, special ones counted, that the model takes; None where none is stated."""
        known = [self._settings.get("model_max_length")]
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            setting = self._model.get(name)
            if isinstance(setting, int):
                offset = self._model.get("model_type") in _OFFSET_POSITIONS
                known.append(setting - (int(self._model.get("pad_token_id") or 0) + 1 if offset else 0))
        limits = [int(setting) for setting in known if isinstance(setting, int | float) and 0 < setting < _UNLIMITED]
        return min(limits, default=None)

    @cached_property
    def pad(self) -> int | None:
        """The token that stands where there is no text; None where it names none."""
        return self._special("pad")

    @cached_property
    def end(self) -> int | None:
        """The token that ends a text; None where it names none."""
        return self._special("eos")

    def number(self, token: str) -> int | None:
        """Return the number of `token`, spelled as the vocabulary spells it; None where there is none."""
        number: int | None = self._backend.token_to_id(token)
        return number

    def _special(self, name: str) -> int | None:
        setting = self._settings.get(f"{name}_token")
        setting = setting.get("content") if isinstance(setting, dict) else setting
        number = self.number(setting) if isinstance(setting, str) else None
        if number is None:
            stated = self._model.get(f"{name}_token_id")
            stated = stated[0] if isinstance(stated, list) and stated else stated
            number = stated if isinstance(stated, int) and 0 <= stated < self.size else None
        return number

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what decides its tokens."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()[:16]

    def encode(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], length: int | None, *, special: bool = True
    ) -> list[Encoded]:
        """Return each text, or two texts in a row, as tokens.

        Args:
            texts: The texts, or pairs of them.
            length: At most so many tokens, special ones counted: the end is cut off; None: whole.
            special: Put the special tokens around it that a classifier expects.
        """
        backend = self._backend
        if length is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(length)
        try:
            found = backend.encode_batch(list(texts), add_special_tokens=special)
        except Exception as error:  # the library's own, without a type: no room for special tokens, no unknown token
            raise DataError(Problem(str(self.folder), f"its tokenizer cannot read the texts: {error}")) from error
        return [Encoded(one.ids, one.type_ids, bool(one.overflowing)) for one in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text that tokens stand for, special ones left out."""
        text: str = self._backend.decode(list(ids))
        return text

    def save(self, folder: Path) -> None:
        """Write what `AutoTokenizer.from_pretrained` and this class need into `folder`, the model's settings not."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            if (self.folder / name).is_file():
                (folder / name).write_bytes((self.folder / name).read_bytes())
        (folder / TOKENIZER_FILE).write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        if not (folder / _SETTINGS_FILE).is_file():
            settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
            (folder / _SETTINGS_FILE).write_text(json.dumps(settings, indent=1), encoding="utf-8")


def train_tokenizer(
    kind: Literal["bpe", "bytes"], texts: Iterable[str], folder: Path, *, vocabulary: int, purpose: Purpose
) -> Tokenizer:
    """Write a tokenizer trained on `texts` into `folder` and return it.

    Args:
        kind: `bytes` has a token for each byte and learns nothing; `bpe` merges bytes that often stand side by side
            (Sennrich et al., ACL 2016; on bytes as GPT-2, Radford et al. 2019).
        texts: Read once.
        folder: Where it is written.
        vocabulary: Tokens of `bpe`, special ones counted.
        purpose: Labelled texts begin with `[CLS]` and end with `[SEP]`; running text ends with `<|endoftext|>`.
    """
    library = _library()
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"] if purpose == "labelled" else ["<|endoftext|>"]
    backend = library.Tokenizer(library.models.BPE())
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary if kind == "bpe" else len(special) + _BYTES,
        special_tokens=special,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_short(texts) if kind == "bpe" else iter(()), trainer)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if purpose == "labelled":
        settings |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        settings |= {"eos_token": "[SEP]", "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
        ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        backend.post_processor = library.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    else:
        settings |= {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / TOKENIZER_FILE))
    (folder / _SETTINGS_FILE).write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return Tokenizer(folder)


_TRAINED_ON = 100_000
"""Characters of a piece that a tokenizer learns from at once: one of millions takes its memory many times over."""


def _short(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from (text[start : start + _TRAINED_ON] for start in range(0, len(text), _TRAINED_ON))


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.processors
        import tokenizers.trainers
    except ImportError as error:
        raise DataError('reading texts needs the package tokenizers: pip install "kdnas[hf]"') from error
    return tokenizers


def _opened(folder: Path) -> Any:
    """Return the tokenizer of `folder` as the package tokenizers has it. Raises DataError."""
    library = _library()
    path = folder / TOKENIZER_FILE
    allowed = "a Hugging Face folder with tokenizer.json"
    if not folder.is_dir():
        raise DataError(Problem(str(folder), "there is no such folder", allowed))
    if path.is_file():
        try:
            return library.Tokenizer.from_file(str(path))
        except Exception as error:  # the library's own, without a type
            raise DataError(Problem(str(path), f"is damaged, or of a newer version of tokenizers: {error}")) from error
    try:
        from transformers import AutoTokenizer

        made = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, use_fast=True)
        return made.backend_tokenizer
    except Exception as error:  # no transformers, no files, a tokenizer that is code alone
        what = f"holds no tokenizer that can be read without running code: {type(error).__name__}: {str(error)[:200]}"
        raise DataError(Problem(str(folder), what, allowed)) from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none. Raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(Problem(str(path), f"cannot be read: {error}")) from error
    return content if isinstance(content, dict) else {}


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """Return the smallest type that holds every token of so many."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)
