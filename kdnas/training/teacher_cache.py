"""Teacher outputs on the views that a study's trials share, computed once and kept on disk.

Trials of a study see the same augmented views (common random numbers), so the teacher's outputs for view v of sample n
need not be computed again. A row holds a sample's predictions one after the other, each with its logits, and its
embedding where a loss reads that, in the type that the teacher computed them in: float32, or bfloat16 at half the size.
Both are exact.

On disk each key (teacher, data, augmentation, ...) is a folder with two files a view: `rows` [N, W] and `sums` uint32
[N], the checksum of each row that is there, else 0: N * (W * 4 or 2 + 4) bytes a view. N are all training samples, so
that trainings on other shares of them have rows in common; where a sample has a prediction at each place of a sequence,
those that are trained on. A view that would need more than half of the disk's free space is not kept. The sums are
written after the rows are on the disk, so a killed process leaves rows that nobody reads. A row that does not agree
with its sum is forgotten when the view is opened, and computed anew. Processes that meet the same gap claim parts of
it: a claim is a lock on a byte of the file `claims`, which the system takes back from a process that dies.

With `top_k`, for label sets whose rows would fill the disk, a prediction is its k largest logits, and one number for
the others: the logit that would give each of them the mean of their mass. A third file, `classes` int32 [N, k for each
prediction], holds their indices. So the distribution keeps its total at temperature 1, and only the order within the
tail is lost: of the ten logits of a ResNet on 1,000 CIFAR-10 test images, keeping 5 loses 0.0012 nats at temperature 1
and 0.0007 at 4, keeping 2 loses 0.011 and 0.003. `truncation_error` computes it for a given teacher.

Where `drawn`, the k tokens of a prediction are drawn from the teacher's distribution (Anshumann et al., "Sparse logit
sampling: accelerating knowledge distillation in LLMs", ACL 2025), with the logarithm of the share that each was drawn
with: a token of probability p has p on average, so the gradient of kd at temperature 1 is the full one on average, and
no tail is cut. The draws are k points at equal distances along the cumulated probabilities, their beginning being
random (systematic sampling): a token is drawn k * p times rounded down or up, which varies less than k single draws.

Exactness: a row is what the teacher gave for that view in the batch it was computed in. The same batches give the
same bits; another batch size may differ in the last ones, as the teacher itself does.

Shapes: M predictions, V outputs (classes or tokens).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdnas import checksums
from kdnas.core.words import counted
from kdnas.errors import TrialError
from kdnas.faults import reach
from kdnas.nn.taps import Outputs
from kdnas.store import NO_STORE, Store

try:
    import fcntl
except ImportError:  # not a POSIX system: processes do not wait for each other
    fcntl = None  # type: ignore[assignment]

_FORMAT = 3
_POLL_S = 0.02
_SHARE = 0.5
"""Of the disk's free space that one view may take."""
NEVER = -1e4
"""Logarithm of the probability of a token that was not drawn: an infinite one has no gradient next to a share of 0."""
_ROW_TYPES = (np.dtype(np.float32), np.dtype(np.uint16))
"""bfloat16 is kept as its bits: numpy has no such type."""
_SUM = np.dtype(np.uint32)


@dataclass(frozen=True)
class ViewsKey:
    """All that decides the teacher's outputs on a study's views; equal keys share rows."""

    teacher: str
    """The teacher's fingerprint, and a short hash of its outputs for a few fixed samples."""
    data: str
    """The data's fingerprint."""
    augmentation: str
    """The augmentation as JSON; where it mixes samples, with a hash of those that may be mixed."""
    view_seed: int
    precision: str
    device: str
    """The device's type: kernels differ in the last bits."""
    samples: int
    """Samples that have rows, N."""
    outputs: int
    """Logits of a prediction, V."""
    embedding: int
    """Numbers of an embedding, D; 0 where no loss reads it."""
    top_k: int | None = None
    """Logits that are kept of a prediction, k, where not all are."""
    predictions: int = 1
    """Of a sample."""
    drawn: bool = False
    """Whether the k logits are those of drawn tokens, not the largest."""
    embeddings: int = 1
    """Of a prediction: one, or those of all candidates of a list."""

    @property
    def logits(self) -> int:
        """Numbers that stand for a prediction's logits: V, or k + 1."""
        return self.outputs if self.top_k is None else self.top_k + 1

    @property
    def width(self) -> int:
        """Numbers in a row, W."""
        return self.predictions * (self.logits + self.embeddings * self.embedding)

    @property
    def view_bytes(self) -> int:
        """Bytes of a view on the disk, as far as is known before the teacher was asked."""
        number = 2 if self.precision == "bfloat16" and self.top_k is None else 4
        places = 0 if self.top_k is None else 4 * self.predictions * self.top_k
        return self.samples * (self.width * number + places + _SUM.itemsize)

    @property
    def digest(self) -> str:
        """The folder's name: 24 hexadecimal digits of a SHA-256."""
        facts = asdict(self)
        facts["classes"] = facts.pop("outputs")  # as the first caches have it
        if self.predictions == 1:
            del facts["predictions"]
        if not self.drawn:
            del facts["drawn"]
        if self.embeddings == 1:
            del facts["embeddings"]
        text = json.dumps({"format": _FORMAT, **facts}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def pack(self, batches: Sequence[Outputs], begins: Tensor | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the rows [n, W] of several batches, and which logits are kept of them, int32, where not all are.

        `begins` [M], in [0, 1), is where the draws of each prediction begin, where tokens are drawn. Rows are
        bfloat16's bits where the teacher gave nothing finer, else float32. Raises TrialError where one is not finite.
        """
        places = None
        logits = torch.cat([outputs.logits for outputs in batches])
        if self.top_k is not None:
            logits, places = truncated(logits, self.top_k) if begins is None else drawn(logits, self.top_k, begins)
            places = places.view(-1, self.predictions * self.top_k)
        columns = [logits]
        if self.embedding:
            embedding = torch.cat([outputs.embedding for outputs in batches if outputs.embedding is not None])
            columns.append(embedding.view(len(logits), -1))
        in_bfloat16 = all(column.dtype == torch.bfloat16 for column in columns)
        rows = torch.cat([column if in_bfloat16 else column.float() for column in columns], dim=1).cpu()
        if not bool(torch.isfinite(rows).all()):
            raise TrialError("the teacher gave outputs that are not finite")
        bits = (rows.view(torch.uint16) if in_bfloat16 else rows).view(-1, self.width)
        return bits.numpy(), None if places is None else places.cpu().numpy()

    def unpack(self, rows: Tensor, places: Tensor | None) -> Outputs:
        """Return the outputs that `pack` was given, from rows [n, W] of floats."""
        rows = rows.view(-1, self.logits + self.embeddings * self.embedding)
        logits = rows[:, : self.logits] if self.embedding else rows
        if places is not None:
            logits = restored(logits, places.view(len(rows), -1), self.outputs)
        embedding = rows[:, self.logits :].reshape(-1, self.embedding) if self.embedding else None
        return Outputs(logits, embedding=embedding)


@dataclass(frozen=True)
class View:
    """The rows of one view, read-only maps: float32, or uint16 with the bits of bfloat16, [N, W].

    `filled` bool [N] marks those that are there; `places` int32 which logits, where not all are kept.
    """

    rows: np.ndarray
    filled: np.ndarray
    places: np.ndarray | None = None


class TeacherCache:
    """Cached teacher rows under `folder`, which may be shared by processes of one machine and by studies.

    Args:
        folder: Made when it is needed.
        top_k: Keep so many logits of each row only, for label sets whose rows would fill the disk; None: all of them.
        drawn: Keep those of so many drawn tokens, not of the likeliest.
        on_fill: Called with (view, part, parts) after each part of a view that the teacher was run for.
        on_damage: Called with a sentence where rows that were kept are not what was written.
        store: Has the parts of views that other machines have filled.
    """

    def __init__(
        self,
        folder: Path,
        *,
        top_k: int | None = None,
        drawn: bool = False,
        on_fill: Callable[[int, int, int], None] | None = None,
        on_damage: Callable[[str], None] = lambda batches: None,
        store: Store = NO_STORE,
    ):
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        self.top_k = top_k
        self.drawn = drawn
        self.on_fill = on_fill
        self.on_view: Callable[[int], None] = lambda view: None
        """Called with each view that a training begins with."""
        self._on_damage = on_damage
        self._folder = folder
        self._store = store

    def filled(self, key: ViewsKey, view: int) -> np.ndarray | None:
        """Return which rows of `view` are marked as there, bool [N]; None where none is."""
        sums = self._sums(key, view)
        return None if sums is None else sums > 0

    def _sums(self, key: ViewsKey, view: int) -> np.ndarray | None:
        rows, sums, _ = self._paths(key, view)
        try:
            if rows.stat().st_size not in [_size(key, dtype) for dtype in _ROW_TYPES]:
                return None
            found = np.fromfile(sums, dtype=_SUM)
        except OSError:
            return None
        return found if len(found) == key.samples and found.any() else None

    def forget_damaged(self, key: ViewsKey, view: int) -> bool:
        """Check the rows of `view` against their sums, a sample of what is large, and forget those that disagree.

        Damage that is found is reported. Returns whether the view may be used: not where the files cannot be mended.
        """
        rows, sums, _ = self._paths(key, view)
        if self._has_wrong_sizes(key, view):
            self._on_damage(f"{rows} is cut short or too long: the teacher's outputs are computed anew")
            self._discard(key, view)
            return True
        found, promised = self.read(key, view), self._sums(key, view)
        if found is None or promised is None:
            return True
        parts = [found.rows] if found.places is None else [found.rows, found.places]
        there = np.flatnonzero(promised)
        checked = checksums.drawn_rows(there, sum(part.itemsize * part.shape[1] for part in parts))
        actual = checksums.row_sums(checked, *(part[checked] for part in parts))
        damaged = checked[actual != promised[checked]]
        if not len(damaged):
            return True
        what = f"{counted(len(damaged), 'row')} of {rows} {'is' if len(damaged) == 1 else 'are'} not what was written"
        self._on_damage(f"{what}: the teacher's outputs are computed anew")
        if len(checked) < len(there):
            damaged = there  # what a sample shows others may have
        try:
            _write_rows(sums, key.samples, damaged, np.zeros((len(damaged), 1), dtype=_SUM))
        except OSError:
            return False
        return True

    def _discard(self, key: ViewsKey, view: int) -> None:
        for path in self._paths(key, view):
            with contextlib.suppress(OSError):  # what cannot be removed is not read either
                path.unlink()

    def _has_wrong_sizes(self, key: ViewsKey, view: int) -> bool:
        """Return whether sums are there, but not just what they are of."""
        rows, sums, places = self._paths(key, view)
        try:
            if not sums.exists() or not sums.stat().st_size:
                return False
            wanted = [(sums, [key.samples * _SUM.itemsize]), (rows, [_size(key, dtype) for dtype in _ROW_TYPES])]
            if key.top_k is not None:
                wanted.append((places, [4 * key.samples * key.predictions * key.top_k]))
            return any(not path.exists() or path.stat().st_size not in sizes for path, sizes in wanted)
        except OSError:
            return False

    def can_write(self, key: ViewsKey) -> bool:
        """Return whether rows of `key` may be stored; its folder is made where it is missing."""
        folder = self._folder / key.digest
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK) and not self.lacks_room(key)

    def lacks_room(self, key: ViewsKey) -> str:
        """Return in words what the rows of `key` would need and the disk has; empty where they are there or fit."""
        rows, _, _ = self._paths(key, 0)
        folder = next((parent for parent in rows.parents if parent.exists()), None)
        if rows.exists() or folder is None:
            return ""
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
            if key.view_bytes > free * _SHARE:
                needed = f"{key.view_bytes / 2**30:,.3g} GiB a view"
                return f"{needed}, and {self._folder} has {free / 2**30:,.3g} GiB free, of which half may be used"
        return ""

    def read(self, key: ViewsKey, view: int) -> View | None:
        """Return what is there of `view`, None where nothing is."""
        rows, _, places = self._paths(key, view)
        try:
            filled = self.filled(key, view)
            if filled is None:
                return None
            dtype = next(dtype for dtype in _ROW_TYPES if rows.stat().st_size == _size(key, dtype))
            kept = None
            if key.top_k is not None:
                shape = key.samples, key.predictions * key.top_k
                kept = np.memmap(places, dtype=np.int32, mode="r", shape=shape)
            return View(np.memmap(rows, dtype=dtype, mode="r", shape=(key.samples, key.width)), filled, kept)
        except (OSError, ValueError, StopIteration):  # somebody cut a file short
            return None

    def write(
        self, key: ViewsKey, view: int, samples: np.ndarray, values: np.ndarray, places: np.ndarray | None = None
    ) -> bool:
        """Store `values` [M, W], float32 or the bits of bfloat16, as the rows of `samples` [M].

        `places` int32 are those kept of each. Returns False, storing nothing, where the disk is full.
        """
        rows, sums, kept = self._paths(key, view)
        try:
            rows.parent.mkdir(parents=True, exist_ok=True)
            if rows.stat().st_size != _size(key, values.dtype) if rows.exists() else sums.exists():
                self._discard(key, view)  # of another type, or of a size that somebody gave them
            parts = [values] if places is None else [values, places.astype(np.int32)]
            if places is not None:
                _write_rows(kept, key.samples, samples, parts[1])
            _write_rows(rows, key.samples, samples, values)
            reach("cache")
            _write_rows(sums, key.samples, samples, checksums.row_sums(samples, *parts)[:, None])
        except OSError:
            return False  # the cache only saves time; a training goes on without it
        return True

    @contextlib.contextmanager
    def claim(self, key: ViewsKey, part: str, *, patience_s: float) -> Iterator[bool]:
        """Hold the claim on `part` of the work; give whether nobody else had it, or gave it up within `patience_s`.

        A claim ends with the context or with its process, whatever ends that. Where there are no locks (other systems,
        some network disks) everybody is given every claim: work is done twice, and nothing is wrong.
        """
        path = self._folder / key.digest / "claims"
        place = int.from_bytes(hashlib.sha256(part.encode()).digest()[:7], "big")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            yield True
            return
        try:
            if not _locked(descriptor, place, time.monotonic() + patience_s):
                yield False
                return
            with self._store.claim(_part_name(key, part), patience_s=patience_s) as ours:
                yield ours
        finally:
            os.close(descriptor)

    def fetch(self, key: ViewsKey, view: int, part: str, samples: np.ndarray) -> bool:
        """Store the rows of `samples` [M], which are `part` of `view`, where another machine has filled them."""
        file = self._folder / key.digest / f".{_part_name(key, part).rpartition('/')[2]}.{os.getpid()}.npz"
        if not self._store.get(_part_name(key, part), file):
            return False
        try:
            with np.load(file, allow_pickle=False) as found:
                values, places = found["rows"], found["places"] if key.top_k is not None else None
            wanted = [(values, key.width)]
            wanted += [] if places is None else [(places, key.predictions * (key.top_k or 0))]
            if values.dtype not in _ROW_TYPES or any(one.shape != (len(samples), width) for one, width in wanted):
                return False
            return self.write(key, view, samples, values, places)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False
        finally:
            file.unlink(missing_ok=True)

    def share(self, key: ViewsKey, part: str, values: np.ndarray, places: np.ndarray | None = None) -> None:
        """Let other machines have the rows of `part` of a view, as they were given to `write`."""
        if not self._store.is_shared:
            return
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            file = Path(folder) / "part.npz"
            if places is None:
                np.savez(file, rows=values)
            else:
                np.savez(file, rows=values, places=places.astype(np.int32))
            self._store.put(_part_name(key, part), file)

    def _paths(self, key: ViewsKey, view: int) -> tuple[Path, Path, Path]:
        stem = self._folder / key.digest / f"view{view:05d}"
        return stem.with_suffix(".rows"), stem.with_suffix(".sums"), stem.with_suffix(".classes")


def _part_name(key: ViewsKey, part: str) -> str:
    return f"teacher_outputs/{key.digest}/{hashlib.sha256(part.encode()).hexdigest()[:24]}"


def _locked(descriptor: int, place: int, deadline: float) -> bool:
    """Lock the byte `place` of a file; False where another process still has it at the deadline."""
    if fcntl is None:
        return True
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            return True
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        except OSError:  # no locks here
            return True


def _size(key: ViewsKey, dtype: np.dtype) -> int:
    return key.samples * key.width * dtype.itemsize


def _write_rows(path: Path, count: int, samples: np.ndarray, values: np.ndarray) -> None:
    shape = (count, values.shape[1])
    size = count * values.shape[1] * values.itemsize
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.fstat(descriptor).st_size < size:
            # Space is claimed first: writing to a map of a file that the disk cannot hold kills the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, size)
            else:
                os.truncate(descriptor, size)
    finally:
        os.close(descriptor)
    mapped = np.memmap(path, dtype=values.dtype, mode="r+", shape=shape)
    mapped[samples] = values
    mapped.flush()


def truncated(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return (values float32 [M, k + 1], places int32 [M, k]) of `logits` [M, V]; with k = V nothing is lost."""
    logits = logits.float()
    count = logits.shape[1]
    largest, places = logits.topk(top_k, dim=1)
    if top_k == count:
        return torch.cat([largest, logits.new_zeros(len(logits), 1)], dim=1), places.int()
    # One copy, changed in its place, in the precision that is kept: of a whole vocabulary more takes seconds a batch.
    others = logits.scatter(1, places, -math.inf)
    highest = others.amax(dim=1, keepdim=True).clamp_min(torch.finfo(others.dtype).min)
    mass = others.sub_(highest).exp_().sum(dim=1, keepdim=True)
    return torch.cat([largest, mass.log_() + highest - math.log(count - top_k)], dim=1), places.int()


def drawn(logits: Tensor, draws: int, begins: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `truncated` does, of tokens drawn by their probabilities: the others have none.

    A token's share of the `draws` is its probability on average over `begins` [M], uniform in [0, 1). One that is drawn
    several times stands in several places, with the same value.
    """
    cumulated = logits.double().softmax(dim=1).cumsum(dim=1)
    points = (begins.double()[:, None] + torch.arange(draws, device=logits.device)) / draws
    places = torch.searchsorted(cumulated, points * cumulated[:, -1:], right=True).clamp_max(logits.shape[1] - 1)
    times = torch.searchsorted(places, places, right=True) - torch.searchsorted(places, places)
    shares = (times.double() / draws).log()
    return torch.cat([shares, torch.full_like(shares[:, :1], NEVER)], dim=1).float(), places.int()


def restored(values: Tensor, places: Tensor, count: int) -> Tensor:
    """Return logits [M, `count`] from what `truncated` gave: every class not kept gets the others' mean mass."""
    logits = values[:, -1:].repeat(1, count)
    return logits.scatter_(1, places.long(), values[:, :-1])


def truncation_error(logits: Tensor, top_k: int, *, temperature: float = 1.0) -> float:
    """Return the mean KL divergence in nats from `logits` [M, V] to what is kept of them, at `temperature`."""
    kept = restored(*truncated(logits, top_k), logits.shape[1])
    true, approximate = (
        functional.log_softmax(values.double() / temperature, dim=1) for values in (logits.float(), kept)
    )
    return float(functional.kl_div(approximate, true, reduction="batchmean", log_target=True))


def drawing_error(logits: Tensor, draws: int) -> tuple[float, float]:
    """Return (share of the mass that lies elsewhere, different tokens) of `draws` from `logits` [M, V], on average.

    The share is the total variation between an answer and what is kept of it.
    """
    begins = (torch.arange(len(logits)) + 0.5) / len(logits)
    values, places = drawn(logits, draws, begins)
    kept = restored(values, places, logits.shape[1]).double().softmax(dim=1)
    apart = 0.5 * (kept - logits.double().softmax(dim=1)).abs().sum(dim=1)
    return float(apart.mean()), float((kept > 0).sum(dim=1).double().mean())
