"""How networks of Hugging Face transformers are loaded: weights from safetensors only, no code of theirs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kdnas.core.text import TokenData
from kdnas.errors import Problem, TeacherError
from kdnas.nn.origin import Origin
from kdnas.nn.progress_bars import without_bars
from kdnas.teachers._loading import require
from kdnas.tokenizing import TOKENIZER_FILE, Tokenizer


@dataclass(frozen=True)
class Loaded:
    """A network in float32, the library, what it was loaded from and how, and the folder where it was one."""

    network: nn.Module
    library: Any
    source: str
    options: dict[str, Any]
    folder: Path | None

    def origin(self, inputs: tuple[str, ...]) -> Origin:
        """Return how the network is made anew, given what it calls the task's inputs."""
        config: Any = self.network.config
        return Origin(
            "transformers",
            type(self.network).__name__,
            config.to_diff_dict(),
            config=type(config).__name__,
            inputs=inputs,
            folder=self.folder,
        )


def load_transformer(auto: str, model: str, data_root: Path, revision: str = "main") -> Loaded:
    """Return the network `model`, a folder under the data root or a hub id, as the class `auto` opens it.

    Raises TeacherError: no such folder, no network, pickled weights only, damaged files, weights that are missing.
    """
    library = require("transformers", "hf")
    folder = data_root / model
    source = str(folder) if folder.is_dir() else model
    options = {"trust_remote_code": False, "local_files_only": folder.is_dir(), "revision": revision}
    try:
        with without_bars():
            network, found = getattr(library, auto).from_pretrained(
                source, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=False, **options
            )
    except Exception as error:  # whatever files, network and library lead it to
        reason = " ".join(str(error).split())[:400]
        what = f"{source} cannot be loaded: {type(error).__name__}: {reason}"
        raise TeacherError(
            Problem("model", what, "a folder under the data root or a hub id, with model.safetensors")
        ) from error
    _refuse_gaps(found, source)
    return Loaded(network.float(), library, source, options, folder if folder.is_dir() else None)


def check_tokens(loaded: Loaded, data: TokenData) -> None:
    """Raise TeacherError where the model does not read the data's tokens, with everything that does not fit."""
    config = loaded.network.config
    problems = []
    rows = int(config.vocab_size)  # type: ignore[union-attr, arg-type]
    if rows != data.vocabulary:
        what = f"it has embeddings for {rows:,} tokens, and the data's tokenizer has {data.vocabulary:,}"
        problems.append(Problem("teacher", what, "data.tokenizer: the teacher's folder"))
    elif loaded.folder is not None and (loaded.folder / TOKENIZER_FILE).is_file():
        own, used = Tokenizer(loaded.folder), Tokenizer(data.tokenizer)
        if own.fingerprint != used.fingerprint:
            what = "its folder has another tokenizer than the one that read the data"
            problems.append(Problem("teacher", what, "data.tokenizer: the teacher's folder"))
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if isinstance(positions, int) and positions < data.length:
        what = f"it takes {positions} tokens, and the data's {data.task.samples} have {data.length}"
        problems.append(Problem("teacher", what, f"data.length: {positions}"))
    if problems:
        raise TeacherError(problems)


def _refuse_gaps(found: dict[str, Any], source: str) -> None:
    """Raise TeacherError where transformers filled in weights that the checkpoint does not have."""
    kinds = {"missing_keys": "missing", "mismatched_keys": "of another shape", "error_msgs": "unreadable"}
    problems = []
    for key, kind in kinds.items():
        names = sorted(str(name) for name in found.get(key) or ())
        if names:
            problems.append(Problem(source, f"{len(names)} weights are {kind}: {', '.join(names[:5])}"))
    if problems:
        raise TeacherError(problems)
