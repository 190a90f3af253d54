"""The store: by name, checked, made once, on a folder, in memory and on a server that speaks S3."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdnas.errors import ConfigError, RunFolderError
from kdnas.store import SharedStore, Store, open_store

_SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The URL of a bucket on a local server."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = subprocess.DEVNULL
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "hush-hush",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        try:
            for _ in range(100):
                try:
                    request = urllib.request.Request(f"http://127.0.0.1:{port}/kdnas", method="PUT")
                    urllib.request.urlopen(request, timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield "s3://kdnas/studies"
        finally:
            server.kill()
            server.wait()


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/store"
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    return f"{request.getfixturevalue('s3_server')}/{tmp_path.name}"


def _folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def test_files_and_folders_come_back_as_they_were_put(url: str, tmp_path: Path) -> None:
    store = SharedStore(url)
    store.put("teachers/one.bin", _folder(tmp_path / "a", weights="w" * 3_000_000) / "weights")
    _folder(tmp_path / "b", images="1", **{"inner/labels": "2", "of no name": "3"})
    store.put("data/abc", tmp_path / "b", only=["images", "inner/labels", "absent"])
    again = SharedStore(url)
    assert again.get("teachers/one.bin", tmp_path / "x" / "other name")
    assert (tmp_path / "x" / "other name").read_text() == "w" * 3_000_000
    assert again.get("data/abc", tmp_path / "x" / "c")
    found = {str(p.relative_to(tmp_path / "x" / "c")): p.read_text() for p in (tmp_path / "x" / "c").rglob("*.*")}
    found = {
        p.relative_to(tmp_path / "x/c").as_posix(): p.read_text() for p in (tmp_path / "x/c").rglob("*") if p.is_file()
    }
    assert found == {"images": "1", "inner/labels": "2"}
    assert not again.get("data/other", tmp_path / "x" / "d")
    assert not (tmp_path / "x" / "d").exists()
    assert again.names("data") == ["data/abc"]
    assert again.has("data/abc")
    again.drop("data/abc")
    assert not store.has("data/abc")
    assert store.names("data") == []
    assert [path.name for path in (tmp_path / "x").iterdir() if path.name.startswith(".")] == []


def test_what_is_damaged_is_told_and_made_anew(url: str, tmp_path: Path) -> None:
    told: list[str] = []
    store = SharedStore(url, notify=told.append)
    store.put("proxies/p", _folder(tmp_path / "a", p="right") / "p")
    (place,) = [one for one in store._files.find(f"{store._root}/objects") if "proxies" in one]
    store._files.pipe_file(place, b"wrong")
    target = tmp_path / "b" / "p"
    store.have("proxies/p", target, lambda: _write(target, "right"))
    assert target.read_text() == "right"
    assert len(told) == 1
    assert told[0].endswith("proxies/p: p is not what was written: it is made anew")
    assert SharedStore(url).get("proxies/p", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "right"


@pytest.mark.parametrize("place", ["../../outside", "/outside", "a/../../outside", "..\\outside"])
def test_a_store_cannot_write_elsewhere(tmp_path: Path, place: str) -> None:
    store = SharedStore(f"file://{tmp_path}/store")
    store.put("data/abc", _folder(tmp_path / "a", x="evil"))
    name = tmp_path / "store" / "names" / "data" / "abc.json"
    listed = json.loads(name.read_text())
    name.write_text(json.dumps({**listed, "files": {place: listed["files"]["x"]}}))
    assert not store.get("data/abc", tmp_path / "deep" / "er" / "b")
    assert not list(tmp_path.rglob("*outside*"))
    assert not Path("/outside").exists()


def test_one_of_many_makes_it(url: str, tmp_path: Path) -> None:
    made: list[int] = []
    stores = [SharedStore(url, lease_s=2.0) for _ in range(3)]

    def work(number: int) -> None:
        target = tmp_path / f"host{number}" / "thing"

        def make() -> None:
            made.append(number)
            time.sleep(1.0)
            target.write_text("made")

        stores[number].have("things/thing", target, make)
        assert target.read_text() == "made"

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all((tmp_path / f"host{number}" / "thing").read_text() == "made" for number in range(3))


def _hold_and_die(url: str, held: Any) -> None:
    with SharedStore(url, lease_s=1.0).claim("things/thing"):
        held.set()
        time.sleep(60)


def test_a_claim_is_renewed_and_falls_with_its_holder(tmp_path: Path) -> None:
    url, held = f"file://{tmp_path}/store", _SPAWN.Event()
    holder = _SPAWN.Process(target=_hold_and_die, args=(url, held))
    holder.start()
    try:
        assert held.wait(30)
        store, said = SharedStore(url, lease_s=1.0), list[str]()
        with store.claim("things/thing", patience_s=2.5, notify=said.append) as ours:
            assert not ours  # it lives, and longer than its lease
        assert said == ["waiting for another machine that makes things/thing"]
        holder.kill()
        began = time.monotonic()
        with store.claim("things/thing", patience_s=30) as ours:
            assert ours
            assert time.monotonic() - began < 10
    finally:
        holder.kill()
        holder.join()
    assert not list((tmp_path / "store" / "claims").rglob("thing"))


def test_a_store_that_cannot_be_used_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for url in (f"file://{tmp_path}/file/store", "nonsense://host/x"):
        with pytest.raises(ConfigError, match="cannot be used") as caught:
            open_store(url)
        assert len(caught.value.problems) == 1
        assert "\n" not in str(caught.value)
    assert type(open_store(None)) is Store


def test_a_server_that_is_away_for_a_moment_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SharedStore(f"memory://{tmp_path.name}", patience_s=5.0)
    store.put("data/x", _folder(tmp_path, x="1") / "x")
    asked: list[str] = []
    read: Callable[..., bytes] = store._files.cat_file

    def away_twice(place: str) -> bytes:
        asked.append(place)
        if len(asked) <= 2:
            raise ConnectionError("no route to host")
        return read(place)

    monkeypatch.setattr(store._files, "cat_file", away_twice)
    assert store.get("data/x", tmp_path / "y")
    assert len(asked) == 3
    store._patience_s = 0.0
    asked.clear()
    with pytest.raises(RunFolderError, match="the store memory:.* fails: no route to host"):
        store.has("data/x")


@pytest.mark.slow
def test_no_secret_is_told_or_kept(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    store = SharedStore(f"{s3_server}/{tmp_path.name}")
    store.put("data/x", _folder(tmp_path, x="1") / "x")
    assert b"hush-hush" not in pickle.dumps(store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        SharedStore(f"{s3_server}/other")
    assert time.monotonic() - began < 60
    assert "hush-hush" not in str(caught.value)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "hush-hush"
