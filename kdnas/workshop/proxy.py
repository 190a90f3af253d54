"""A study's proxy put to work: the teacher's features of the training split, and the choice, which is kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdnas import atomic
from kdnas.errors import ConfigError, Problem
from kdnas.nn.exact import exact_arithmetic
from kdnas.nn.taps import Output, Taps
from kdnas.nn.teacher import Teacher
from kdnas.plugins import code_fingerprints, short_name
from kdnas.proxies import PROXIES, Pool
from kdnas.registry import Member
from kdnas.store import NO_STORE, Store
from kdnas.training.batches import Batches
from kdnas.training.evaluation import evaluation_batch

if TYPE_CHECKING:
    from kdnas.workshop.opening import Workshop

_KEY = "training.proxy"


def proxy_places(workshop: Workshop, proxy: Member, share: float, seed: int) -> np.ndarray:
    """Return the sorted places, in the training split, of the share of it that `proxy` chooses. Raises ConfigError."""
    indices, data, teacher = workshop.train_indices, workshop.data, workshop.teacher

    def embedded() -> np.ndarray:
        if teacher is None:
            what = f"{short_name(proxy.type)} chooses by the features of a teacher, and there is none"
            raise ConfigError(Problem(_KEY, what, "random, or a study with a teacher"))
        return features(teacher, Batches(teacher.given(data), indices, device=workshop.device))

    pool = Pool(data.train.targets[indices], share, seed, workshop.task, embedded)
    split = np.ascontiguousarray(indices, dtype=np.int64).tobytes()
    whose = "" if teacher is None else teacher.fingerprint
    facts = {"data": data.fingerprint, "split": hashlib.sha256(split).hexdigest(), "teacher": whose}
    return choose(proxy, pool, workshop.cache / "proxies", facts, workshop.store)


def choose(proxy: Member, pool: Pool, folder: Path, facts: Mapping[str, object], store: Store = NO_STORE) -> np.ndarray:
    """Return the sorted places [n] that `proxy` chooses of the pool; read from `folder` where they were chosen before.

    `facts` are what the choice rests on in addition to the pool's share and seed: data, split and teacher. Raises
    ConfigError where the choice is no choice of the pool's samples.
    """
    stated = {**facts, "share": pool.share, "seed": pool.seed, "proxy": proxy.model_dump(mode="json")}
    stated["code"] = code_fingerprints({"training": {"proxy": stated["proxy"]}})
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:24]
    kept, count = folder / f"{digest}.npy", len(pool.targets)
    chosen: list[np.ndarray] = []

    def make() -> None:
        chosen.append(_choose(proxy, pool, count))
        with contextlib.suppress(OSError):  # a full disk: it is chosen anew next time
            folder.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(kept) as scratch, scratch.open("wb") as file:
                np.save(file, chosen[0])

    places = _read(kept, count)
    if places is None:
        kept.unlink(missing_ok=True)
        store.have(f"proxies/{kept.name}", kept, make)
        places = chosen[0] if chosen else _read(kept, count)
    return _choose(proxy, pool, count) if places is None else places


def _read(kept: Path, count: int) -> np.ndarray | None:
    """Return the choice of `count` samples in a file; None where there is none, or it is damaged."""
    try:
        places: np.ndarray = np.load(kept, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return places if _fault(places, count) is None else None


def _choose(proxy: Member, pool: Pool, count: int) -> np.ndarray:
    places = np.asarray(PROXIES.build(proxy.type, pool, **proxy.options))
    if (fault := _fault(places, count)) is not None:
        raise ConfigError(Problem(_KEY, f"{short_name(proxy.type)} {fault}", f"different places from 0 to {count - 1}"))
    return np.sort(places.astype(np.int64))


def _fault(places: np.ndarray, count: int) -> str | None:
    """Return why `places` are no choice of `count` samples; None where they are one."""
    if places.ndim != 1 or not np.issubdtype(places.dtype, np.integer):
        return f"gives {places.dtype} of shape {list(places.shape)}, no places"
    if not len(places):
        return "chooses no samples"
    if places.min() < 0 or places.max() >= count:
        return "chooses places that are none"
    return None if len(np.unique(places)) == len(places) else "chooses samples twice"


def features(teacher: Teacher, batches: Batches) -> np.ndarray:
    """Return the teacher's embedding of every sample, float32 [N, C], in the batches' order; or its logits."""
    rows: list[np.ndarray] = []
    needs: tuple[Output, ...] = ("embedding",) if teacher.classifier is not None else ()
    with exact_arithmetic(), torch.no_grad(), Taps(teacher.module, (), teacher.classifier, needs=needs) as tapped:
        for batch in batches.ordered(batch_size=evaluation_batch(batches.task.spec, batches.device)):
            outputs = tapped(*batch.laid_out)
            taken: Tensor = outputs.logits if outputs.embedding is None else outputs.embedding
            rows.append(taken.float().reshape(len(batch), -1, taken.shape[-1]).mean(dim=1).cpu().numpy())
    return np.concatenate(rows)
