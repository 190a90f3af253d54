"""Texts that a teacher writes, to train students on: sequence-level distillation (Kim and Rush, EMNLP 2016).

    <cache>/generated/<key>/0000.jsonl    {"text"} a line, of one batch: an interrupted writing goes on behind it

A teacher continues the beginnings of the training documents. Its likeliest texts, by beams, are what Kim and Rush train
on; texts sampled at temperature 1 show its own distribution.

Shapes: B texts of a batch, T tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from kdnas import atomic
from kdnas.core.seeds import derive_seed
from kdnas.core.words import counted
from kdnas.datasets._inputs import file_identity
from kdnas.errors import ConfigError, DataError, Problem
from kdnas.nn.progress_bars import without_bars
from kdnas.registry import Pattern, Section
from kdnas.tokenizing import Tokenizer

_BATCH = 32
_RULES = ("accept", "reject")
_WEIGHTS = ("*.safetensors", "config.json", "tokenizer.json")


class Generation(Section):
    """How a teacher writes texts that are trained on in place of the training documents."""

    teacher: str
    """A causal language model: a Hugging Face folder under the data root."""
    texts: Annotated[int, Field(ge=1)] = 1000
    """How many it writes, those that repeat others counted; several from one beginning where there are fewer."""
    prompt_tokens: Annotated[int, Field(ge=0)] = 16
    """Of a training document that it continues; shorter documents are none. 0: nothing but the end token."""
    tokens: Annotated[int, Field(ge=1)] = 128
    """That it adds, at most."""
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """0: the likeliest tokens, the search for which has `beams`."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    beams: Annotated[int, Field(ge=1, le=64)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    accept: tuple[Pattern, ...] = ()
    """Rules: regular expressions, all of which must be found in a text that is trained on."""
    reject: tuple[Pattern, ...] = ()
    """The same, of which none may be."""

    def obeys(self, text: str) -> bool:
        """Return whether a text keeps the rules."""
        return all(re.search(rule, text) for rule in self.accept) and not any(
            re.search(rule, text) for rule in self.reject
        )


@dataclass
class Generated:
    """Texts that the teacher of `settings` writes; what is known of them once they are read stands in `notes`."""

    settings: Generation
    data_root: Path
    cache: Path
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The teacher's. Raises DataError where there is none."""
        folder = self.data_root / self.settings.teacher
        if not any(folder.glob("*.safetensors")) or not (folder / "config.json").is_file():
            what = "is no folder of a language model"
            raise DataError(Problem(str(folder), what, "config.json, *.safetensors and a tokenizer"))
        return folder

    def identity(self) -> dict[str, Any]:
        """Return what decides the texts in addition to the prompts. Raises DataError."""
        files = sorted({path for pattern in _WEIGHTS for path in self.folder.glob(pattern)})
        return {**self.settings.model_dump(), "files": [file_identity(path) for path in files]}

    def texts(self, documents: Iterator[str], described: Any) -> Iterator[str]:
        """Yield the texts, each once, written where the cache does not hold them.

        Args:
            documents: Whose beginnings are continued.
            described: What decides these, JSON-serialisable.

        Raises DataError where there is no teacher, or no document is long enough.
        """
        written = {name: value for name, value in self.identity().items() if name not in _RULES}
        identity = json.dumps([written, described], sort_keys=True, default=str)
        kept = self.cache / "generated" / hashlib.sha256(identity.encode()).hexdigest()[:20]
        seen: set[str] = set()
        count = ruled_out = 0
        for text in self._written(documents, kept):
            count += 1
            plain = " ".join(text.split())
            if plain and plain not in seen:
                seen.add(plain)
                if self.settings.obeys(text):
                    yield text
                else:
                    ruled_out += 1
        dropped = f", {counted(count - len(seen), 'repeated or empty one')} left out" if count > len(seen) else ""
        if self.settings.accept or self.settings.reject:
            dropped += f", {ruled_out:,} ({ruled_out / count:.1%}) against the rules left out"
        self.notes.append(f"{counted(count, 'training text')} written by {self.settings.teacher}{dropped}: {kept}")

    def _written(self, documents: Iterator[str], kept: Path) -> Iterator[str]:
        writer: _Writer | None = None
        for number in range(-(-self.settings.texts // _BATCH)):
            path = kept / f"{number:04d}.jsonl"
            if not path.is_file():
                writer = writer or _Writer(self.settings, self.folder, documents)
                lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in writer.batch(number))
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic.write_text(path, "".join(lines))
            with path.open(encoding="utf-8") as stream:
                yield from (json.loads(line)["text"] for line in stream)


class _Writer:
    """The teacher, opened, and the beginnings that it continues."""

    def __init__(self, settings: Generation, folder: Path, documents: Iterator[str]):
        import torch

        self._settings = settings
        self._tokenizer = tokenizer = Tokenizer(folder)
        longest = settings.prompt_tokens + settings.tokens
        if tokenizer.positions is not None and longest > tokenizer.positions:
            what = f"prompt_tokens and tokens are {longest} together, and the teacher takes {tokenizer.positions}"
            raise ConfigError(Problem("data.generate", what))
        self._prompts = self._beginnings(documents)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = _language_model(folder).to(self._device)
        print(f"{settings.teacher} writes {settings.texts:,} texts", file=sys.stderr, flush=True)

    def _beginnings(self, documents: Iterator[str]) -> list[list[int]]:
        size, end = self._settings.prompt_tokens, self._tokenizer.end
        if size == 0:
            if end is None:
                what = "its tokenizer names no end token to begin with"
                raise DataError(Problem(str(self._tokenizer.folder), what, "prompt_tokens of 1 or more"))
            return [[end]]
        encoded = (self._tokenizer.encode([text], None, special=False)[0].ids for text in documents)
        found = itertools.islice((list(ids[:size]) for ids in encoded if len(ids) >= size), self._settings.texts)
        prompts = [list(one) for one in dict.fromkeys(map(tuple, found))]
        if not prompts:
            what = f"no training document has {size} tokens for the teacher to continue"
            raise DataError(Problem("data.generate.prompt_tokens", what, "fewer, or longer documents"))
        return prompts

    def batch(self, number: int) -> list[str]:
        """Return the texts of batch `number`, the beginnings with what the teacher adds: a function of the seed."""
        import torch
        from transformers import GenerationConfig

        settings, end = self._settings, self._tokenizer.end
        first = number * _BATCH
        places = range(first, min(first + _BATCH, settings.texts))
        given = torch.tensor([self._prompts[place % len(self._prompts)] for place in places], device=self._device)
        sampled: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            sampled = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
            sampled["top_k"] = settings.top_k or 0
        config = GenerationConfig(
            max_new_tokens=settings.tokens, num_beams=settings.beams, eos_token_id=end, pad_token_id=end or 0, **sampled
        )
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(derive_seed(settings.seed, f"generated {number}"))
            rows = self._network.generate(given, attention_mask=torch.ones_like(given), generation_config=config)
        return [self._text(row) for row in rows.tolist()]

    def _text(self, row: list[int]) -> str:
        """Return a row [T] up to its end token, which may also stand at its beginning."""
        end = self._tokenizer.end
        row = row[1:] if row[0] == end else row
        return self._tokenizer.decode(row[: row.index(end)] if end in row else row)


def _language_model(folder: Path) -> Any:
    """Return the network in `folder`, which has no generation settings of its own. Raises DataError."""
    try:
        from transformers import AutoModelForCausalLM, GenerationConfig
    except ImportError as error:
        raise DataError('texts of a teacher need the package transformers: pip install "kdnas[hf]"') from error
    try:
        with without_bars():
            network = AutoModelForCausalLM.from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever files, network and library lead it to
        reason = " ".join(str(error).split())[:300]
        raise DataError(Problem(str(folder), f"cannot be loaded: {type(error).__name__}: {reason}")) from error
    network.generation_config = GenerationConfig()
    return network.float().eval().requires_grad_(False)
