"""What the machines of a run share where they share no disk: files and folders by name, at a URL that fsspec opens.

    URL/names/<name>.json        {"folder": true, "files": {"images.npy": "<sha256>", ...}}, written last
        objects/<name>/<sha256>  the content of each file
        claims/<name>            who makes it now, as long as that is being made

Names are made of what decides the content (hashes of data, teacher, settings), so a name determines what stands
under it, and it is made once: whoever needs it asks the store, else makes it under a claim and puts it. Every file is
compared with its SHA-256 when it is fetched; what is damaged is forgotten, reported, and made anew by who asked.

A claim is a small object that its holder renews. One that is not renewed for `lease_s` is taken over: its holder has
died, stopped or lost its network. If it comes back, work is done twice, and nothing is wrong. Clocks of different
machines are never compared.

A store that does not answer is asked again for a minute, then the run ends and the same command goes on. Credentials
are fsspec's own affair (environment, files of the cloud's tools): none is read, printed or written here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from kdnas import atomic
from kdnas.checksums import file_sha256
from kdnas.core.words import printable
from kdnas.errors import ConfigError, Problem, RunFolderError
from kdnas.faults import reach
from kdnas.outlets import Notify, silent

try:
    import fcntl
except ImportError:  # not a POSIX system: processes of one machine may fetch the same thing side by side
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
_LEASE_S = 30.0
_POLL_S = 0.5
_SETTLE_S = 0.3
"""After a claim was taken over: so long later it must still be one's own."""
_PATIENCE_S = 60.0
"""How long a store that does not answer is asked again."""
_PAUSE_S = 1.0
_NAME = re.compile(r"(?!/)(?!.*\.\.)[A-Za-z0-9._/-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OPTIONS: dict[str, dict[str, Any]] = {
    "file": {"auto_mkdir": True},
    "s3": {"config_kwargs": {"connect_timeout": 10, "retries": {"max_attempts": 2}}},
}
"""Of file systems, by protocol: their own patience is minutes."""


class Store:
    """The store of machines that share their folders: there is nothing to carry, and whoever asks makes it himself."""

    is_shared = False
    """Whether there is anything between the machines but their folders."""

    def get(self, name: str, path: Path) -> bool:
        """Have what stands under `name` at `path`, a file or a folder, where nothing is; False where it is not known.

        Raises RunFolderError where the store or the disk fails.
        """
        return False

    def put(self, name: str, path: Path, only: Iterable[str] | None = None, *, alone: bool = False) -> None:
        """Keep a file, or a folder, as `name`; of a folder `only` these files, as far as they are there.

        `alone`: nobody reads it now, so what it replaces is removed.
        """
        return

    def has(self, name: str) -> bool:
        """Return whether something stands under `name`."""
        return False

    def names(self, prefix: str) -> list[str]:
        """Return the names below `prefix`."""
        return []

    def drop(self, name: str) -> None:
        """Forget `name`."""
        return

    @contextlib.contextmanager
    def claim(self, name: str, *, patience_s: float = float("inf"), notify: Notify = silent) -> Iterator[bool]:
        """Hold the making of `name`; give whether nobody else makes it, or gave it up within `patience_s`."""
        yield True

    def have(self, name: str, path: Path, make: Callable[[], None], notify: Notify = silent) -> None:
        """Have what is called `name` at `path`, where nothing is: fetched, or made by `make` and put for the others."""
        if self.get(name, path):
            return
        with self.claim(name, notify=notify):
            if not self.get(name, path):  # another machine may have made it meanwhile
                make()
                self.put(name, path)


NO_STORE = Store()


class SharedStore(Store):
    """A store at `url`. Damage that is found is reported to `notify`. Raises ConfigError where it cannot be used.

    It may be sent to another process, which reports no damage unless it is given a function for that.
    """

    is_shared = True

    def __init__(
        self, url: str, *, notify: Notify = silent, lease_s: float = _LEASE_S, patience_s: float = _PATIENCE_S
    ):
        self.url = url
        self.notify = notify
        self._lease_s = lease_s
        self._patience_s = patience_s
        probe = f"{self._root}/names/.probe-{secrets.token_hex(8)}"
        try:
            self._make_folder(probe)
            self._files.pipe_file(probe, b"kdnas")
            found = self._files.cat_file(probe)
            self._files.rm_file(probe)
        except Exception as error:  # each file system has errors of its own
            raise ConfigError(Problem("store", f"{url} cannot be used: {_reason(error)}")) from error
        if found != b"kdnas":
            raise ConfigError(Problem("store", f"{url} does not give back what was written there"))

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process opens it from."""
        return {"url": self.url, "notify": silent, "_lease_s": self._lease_s, "_patience_s": self._patience_s}

    @functools.cached_property
    def _opened(self) -> tuple[Any, str]:
        try:
            import fsspec  # type: ignore[import-untyped]

            protocol = fsspec.utils.get_protocol(self.url)
            options = {"skip_instance_cache": True, "use_listings_cache": False, **_OPTIONS.get(protocol, {})}
            files, root = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:  # of an unknown protocol, of a package that it needs
            raise ConfigError(Problem("store", f"{self.url} cannot be used: {_reason(error)}")) from error
        return files, str(root).rstrip("/")

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    @property
    def _is_local(self) -> bool:
        return "file" in self._files.protocol

    def has(self, name: str) -> bool:
        """Return whether something stands under `name`."""
        return self._read(self._place("names", f"{name}.json")) is not None

    def get(self, name: str, path: Path) -> bool:
        """Have what stands under `name` at `path`. Of the processes of a machine that ask for it, one fetches it."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _one_of_this_machine(path):
                return path.exists() or self._fetch(name, path)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be written: {error.strerror or error}") from error

    def _fetch(self, name: str, path: Path) -> bool:
        content = self._read(self._place("names", f"{name}.json"))
        if content is None:
            return False
        try:
            found = json.loads(content)
            files, is_folder = dict(found["files"]), bool(found["folder"])
            if not all(_is_inside(inside) and _SHA256.fullmatch(sha256) for inside, sha256 in files.items()):
                raise ValueError("it names other places")
        except (ValueError, KeyError, TypeError, RecursionError):
            return self._forget(name, "the list of its files cannot be read")
        with atomic.scratch_folder(path) as folder:
            for inside, sha256 in files.items():
                target = folder / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._patiently(self._files.get_file, self._place(f"objects/{name}", sha256), str(target))
                except FileNotFoundError:
                    return self._forget(name, f"{inside} is missing")
                if file_sha256(target) != sha256:
                    return self._forget(name, f"{inside} is not what was written")
            folder.chmod(0o755)
            (folder if is_folder else folder / next(iter(files))).replace(path)
            folder.mkdir(exist_ok=True)  # which its context removes
        return True

    def _forget(self, name: str, why: str) -> bool:
        self.notify(f"{self.url}: {name}: {why}: it is made anew")
        self.drop(name)
        return False

    def put(self, name: str, path: Path, only: Iterable[str] | None = None, *, alone: bool = False) -> None:
        """Keep a file, or a folder, as `name`, by the content of its files; what stands there is replaced."""
        is_folder = path.is_dir()
        base = path if is_folder else path.parent
        paths = sorted(one for one in path.rglob("*") if one.is_file()) if is_folder else [path]
        if only is not None:
            paths = [base / inside for inside in only if (base / inside).is_file()]
        files = {}
        for one in paths:
            if not (sha256 := file_sha256(one)):
                raise RunFolderError(f"{one} cannot be read")
            files[one.relative_to(base).as_posix()] = sha256
            self._patiently(self._upload, one, self._place(f"objects/{name}", sha256))
        reach("store")
        text = json.dumps({"folder": is_folder, "files": files}, sort_keys=True).encode()
        self._patiently(self._write, self._place("names", f"{name}.json"), text)
        if alone:
            kept = {self._place(f"objects/{name}", sha256) for sha256 in files.values()}
            for old in {*self._patiently(self._files.find, self._place("objects", name))} - kept:
                self._patiently(self._files.rm, old)

    def names(self, prefix: str) -> list[str]:
        """Return the names below `prefix`."""
        place = self._place("names", "")
        try:
            found = self._patiently(self._files.find, self._place("names", prefix))
        except FileNotFoundError:
            return []
        return sorted(one.partition(place)[2].removesuffix(".json") for one in found if one.endswith(".json"))

    def drop(self, name: str) -> None:
        """Forget `name`."""
        for place in (self._place("names", f"{name}.json"), self._place("objects", name)):
            with contextlib.suppress(FileNotFoundError):
                self._patiently(self._files.rm, place, recursive=True)

    @contextlib.contextmanager
    def claim(self, name: str, *, patience_s: float = float("inf"), notify: Notify = silent) -> Iterator[bool]:
        """Hold the making of `name`; give whether nobody else makes it, or gave it up within `patience_s`."""
        held = self._taken(self._place("claims", name), time.monotonic() + patience_s, lambda: notify(_waiting(name)))
        if held is None:
            yield False
            return
        try:
            yield True
        finally:
            held.release()

    def _taken(self, place: str, deadline: float, on_wait: Callable[[], None]) -> _Claim | None:
        """Return the claim at `place`, once it is free or its holder renews it no more; None at the deadline."""
        token = secrets.token_hex(16)
        seen, since, is_told = b"", time.monotonic(), False
        while not self._patiently(self._create, place, token.encode()):
            content = self._read(place)
            now = time.monotonic()
            if content is not None and content != seen:
                seen, since = content, now
            elif content is not None and now - since > self._lease_s:
                self._patiently(self._write, place, token.encode())
                time.sleep(_SETTLE_S)
                if self._read(place) == token.encode():  # of several that take it over, the last one
                    break
                continue
            if now >= deadline:
                return None
            if not is_told:
                on_wait()
                is_told = True
            time.sleep(min(_POLL_S, self._lease_s / 4))
        return _Claim(self, place, token, self._lease_s)

    def _place(self, kind: str, name: str) -> str:
        if name and not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a store")
        return f"{self._root}/{kind}/{name}"

    def _read(self, place: str) -> bytes | None:
        try:
            content: bytes = self._patiently(self._files.cat_file, place)
        except FileNotFoundError:
            return None
        return content

    def _make_folder(self, place: str) -> None:
        if self._is_local or not hasattr(self._files, "bucket"):
            with contextlib.suppress(FileExistsError, NotImplementedError):
                self._files.makedirs(place.rpartition("/")[0], exist_ok=True)

    def _write(self, place: str, content: bytes) -> None:
        """Write an object whole or not at all, as far as the file system can."""
        if self._is_local:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(Path(place)) as scratch:
                scratch.write_bytes(content)
        else:
            self._files.pipe_file(place, content)

    def _upload(self, path: Path, place: str) -> None:
        if self._is_local:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(Path(place)) as scratch:
                shutil.copyfile(path, scratch)
        else:
            self._files.put_file(str(path), place)

    def _create(self, place: str, content: bytes) -> bool:
        """Write an object where there is none; False where there is one."""
        try:
            if self._is_local:
                Path(place).parent.mkdir(parents=True, exist_ok=True)
                with Path(place).open("xb") as file:
                    file.write(content)
            else:
                self._files.pipe_file(place, content, mode="create")
        except FileExistsError:
            return False
        return True

    def _patiently(self, action: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Return `action(...)`, tried again for a while where the store fails. Raises RunFolderError."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return action(*arguments, **options)
            except (FileNotFoundError, FileExistsError, ConfigError):
                raise
            except Exception as error:  # each file system has errors of its own
                if time.monotonic() >= deadline:
                    raise RunFolderError(f"the store {self.url} fails: {_reason(error)}") from error
                time.sleep(_PAUSE_S)


class _Claim:
    """A claim that is held: a thread renews it until it is released."""

    def __init__(self, store: SharedStore, place: str, token: str, lease_s: float):
        self._store, self._place, self._token = store, place, token
        self._written = token.encode()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, args=(lease_s / 4,), daemon=True)
        self._thread.start()

    def _renew(self, every_s: float) -> None:
        count = 0
        while not self._done.wait(every_s):
            count += 1
            with contextlib.suppress(RunFolderError, OSError):
                if self._store._read(self._place) != self._written:
                    return  # another machine took it over
                self._written = f"{self._token} {count}".encode()
                self._store._write(self._place, self._written)

    def release(self) -> None:
        """Let others have it."""
        self._done.set()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError, RunFolderError):
            if self._store._read(self._place) == self._written:
                self._store._patiently(self._store._files.rm_file, self._place)


def open_store(url: str | None, notify: Notify = silent) -> Store:
    """Return the store at `url`; None: that of machines that share their folders. Raises ConfigError."""
    return NO_STORE if url is None else SharedStore(url, notify=notify)


def _waiting(name: str) -> str:
    return f"waiting for another machine that makes {name}"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0], 200) if lines else type(error).__name__


def _is_inside(place: str) -> bool:
    """Return whether a relative path stays within the folder that it is relative to."""
    path = PurePosixPath(place)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in place


@contextlib.contextmanager
def _one_of_this_machine(path: Path) -> Iterator[None]:
    """Hold what keeps the other processes of this machine from fetching `path`, as far as there are locks."""
    if fcntl is None:
        yield
        return
    guard = path.with_name(f".{path.name}.fetching")
    with guard.open("a") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        guard.unlink(missing_ok=True)  # who waits on it finds the thing fetched
