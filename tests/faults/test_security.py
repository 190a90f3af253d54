"""Each promise of `kdnas help security`, by its number there."""

from __future__ import annotations

import dataclasses
import http.client
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from subprocess import PIPE
from typing import Any

import faulty_run
import numpy as np
import pytest
import scored_study
import synthetic_run
import torch
from faulty_run import Ended

from kdnas.cli.main import main
from kdnas.core.words import printable
from kdnas.errors import ConfigError, DataError, InputError, RunFolderError, TeacherError
from kdnas.exporters._card import _plain
from kdnas.plan.training_folder import claim
from kdnas.record.run_folder import refuse_links
from kdnas.report.dashboard import DashboardServer
from kdnas.report.page import page
from kdnas.study.loading import load_study, study_of
from kdnas.study.yaml_lines import YamlDocument, parse_yaml
from kdnas.teachers._loading import read_weights

RAN = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


def search(study: Path, folder: Path, *more: object, **options: Any) -> Ended:
    return faulty_run.run("search", study, "--out", folder, "--data-root", study, *more, **options)


def test_the_page_is_shown_and_every_promise_has_a_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    assert "security" in capsys.readouterr().out
    assert main(["help", "security"]) == 0
    promises = {int(number) for number in re.findall(r"^ *(\d+)\. ", capsys.readouterr().out, re.MULTILINE)}
    tested = {int(found[1]) for name in globals() if (found := re.match(r"test_promise_(\d+)_", name))}
    assert promises == tested == set(range(1, max(promises) + 1))


def test_promise_1_only_code_that_the_study_names_runs(tmp_path: Path) -> None:
    study = scored_study.write(tmp_path)
    for name in ("conftest.py", "sitecustomize.py", "space.py", "yaml.py", "kdnas.py"):
        (study / name).write_text(RAN)
    assert search(study, tmp_path / "run").code == 0
    assert not (study / "ran").exists()


def test_promise_2_a_strangers_code_is_shown_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = scored_study.write(tmp_path)
    assert search(study, tmp_path / "run").code == 0
    (study / "score.py").write_text(RAN + scored_study.SCORE)
    monkeypatch.setenv("KDNAS_CONFIG", str(tmp_path / "another user"))
    refused = faulty_run.run("search", tmp_path / "run", "--data-root", study, "--trials", 9)
    assert refused.code == 2
    assert f"score.py:score() in {study.resolve() / 'score.py'}" in refused.stderr
    assert not (study / "ran").exists()


class Harm:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        """Make a file."""
        return os.mknod, (str(self.path),)


def test_promise_3_weights_run_nothing(tmp_path: Path) -> None:
    harmful = tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(2), "harm": Harm(tmp_path / "ran")}, harmful)
    with pytest.raises(TeacherError, match="pickled Python objects"):
        read_weights(harmful)
    scripted = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), scripted)
    with pytest.raises(TeacherError, match="TorchScript"):
        read_weights(scripted)
    batch = pickle.dumps({"data": Harm(tmp_path / "ran"), "labels": [0]})
    folder = tmp_path / "cifar"
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(batch)
    from kdnas.datasets import DATASETS

    with pytest.raises(DataError):
        DATASETS.build("cifar_archive", tmp_path, tmp_path / "cache", path="cifar")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.getcwd []", "a: !!python/name:os.system ''"])
def test_promise_4_yaml_makes_no_objects(text: str) -> None:
    with pytest.raises(ConfigError, match="tag"):
        parse_yaml(text, "study.yaml")


def listening(session: int) -> list[str]:
    """The local addresses, in hexadecimal, of the TCP sockets that a session's processes listen on."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    open_ones = {row[9]: row[1] for row in rows if row[3] == "0A"}
    links = [link for pid in faulty_run.processes_of(session) for link in Path(f"/proc/{pid}/fd").iterdir()]
    targets = [str(link.readlink()) for link in links if link.is_symlink()]
    sockets = [target[8:-1] for target in targets if target.startswith("socket:[")]
    return [open_ones[number] for number in sockets if number in open_ones]


def test_promise_5_a_search_listens_to_nothing(tmp_path: Path) -> None:
    study = scored_study.write(tmp_path)
    counts = tmp_path / "counts"
    more = ("search", study, "--out", tmp_path / "run", "--data-root", study)
    going = faulty_run.begin(*more, faults="recorded:2=stop", counts=counts)
    going.wait_until_stopped()
    listen = "import socket; it = socket.create_server(('127.0.0.1', 0)); print(flush=True); input()"
    command = (sys.executable, "-c", listen)
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, start_new_session=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert listening(other.pid)  # what is looked for can be found
        other.communicate(b"\n")
    found = listening(going.pid)
    going.go_on()
    assert going.end().code == 0
    assert not found


def test_promise_6_the_dashboard_is_read_only_and_local(tmp_path: Path) -> None:
    class Nothing:
        mark = "1"

    with DashboardServer(tmp_path, Nothing(), 0) as server:  # type: ignore[arg-type]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert server.server_address[0] == "127.0.0.1"

        def status(verb: str, path: str, host: str) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connection.request(verb, path, headers={"Host": host})
            return connection.getresponse().status

        own = f"localhost:{server.port}"
        assert status("GET", "/version", own) == 200
        assert status("GET", "/study.db", own) == 404
        assert status("GET", "/../etc/passwd", own) == 404
        assert status("GET", "/version", "rebound.example:80") == 403
        assert {status(verb, "/", own) for verb in ("POST", "PUT", "DELETE", "PATCH")} == {405}
        server.shutdown()


def test_a_reader_who_leaves_the_dashboard_is_no_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Large:
        mark = "1" * 50_000_000

    with DashboardServer(tmp_path, Large(), 0) as server:  # type: ignore[arg-type]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with socket.create_connection(("127.0.0.1", server.port)) as left:
            left.sendall(f"GET /version HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n".encode())
            left.recv(10)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/nothing", headers={"Host": f"localhost:{server.port}"})
        assert connection.getresponse().status == 404
        server.shutdown()
    assert capfd.readouterr().err == ""


def test_promise_7_no_command_line_shows_the_path_of_nnis_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("nni_node")
    from kdnas.executors import _nni_experiment

    started: list[Any] = []

    class Started(Exception):
        pass

    def start(command: list[str], **options: Any) -> Any:
        started.append((command, options))
        raise Started

    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setattr("secrets.token_hex", lambda length: "f00d" * (length // 2) if length > 3 else "abc")
    options = {"scratch": tmp_path, "files": tmp_path / "nni", "port": 0, "concurrency": 1, "command": "true"}
    with pytest.raises(Started):
        _nni_experiment.Experiment("search", **options)
    ((command, given),) = started
    assert not any("f00d" in word for word in command)
    assert "f00d" in given["env"]["KDNAS_NNI_MANAGER"]


def test_promise_8_nothing_is_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = scored_study.write(tmp_path)
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "here"))
    monkeypatch.setenv("KDNAS_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("KDNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(here)
    assert search(study, tmp_path / "run").code == 0
    assert not list(home.iterdir())
    assert not list(here.iterdir())
    assert {path.name for path in study.iterdir()} <= {"study.yaml", "space.yaml", "score.py", "__pycache__"}


def test_promise_9_the_key_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDNAS_CONFIG", str(tmp_path / "config"))
    assert search(scored_study.write(tmp_path), tmp_path / "run").code == 0
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "config").iterdir() if path.is_file()}
    assert modes
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize(
    ("section", "value", "where"),
    [
        (
            "evaluator",
            {"type": "module", "function": "f.py:f", "options": {"api_key": "x1"}},
            "evaluator.options.api_key",
        ),
        ("data", {"type": "module", "function": "f.py:f", "options": {"url": "s3://me:x1@host/b"}}, "data.options.url"),
        (
            "executor",
            {"type": "ray", "runtime_env": {"env_vars": {"AWS_SECRET_ACCESS_KEY": "x1"}}},
            "AWS_SECRET_ACCESS",
        ),
        ("storage", "postgresql://me:x1@host/base", "storage"),
    ],
)
def test_promise_10_secrets_are_refused_and_not_told(section: str, value: Any, where: str, tmp_path: Path) -> None:
    study = scored_study.write(tmp_path, **{section: value})
    with pytest.raises(ConfigError) as refused:
        load_study(study)
    assert where in str(refused.value)
    assert "x1" not in str(refused.value)
    data = {"name": "own", "space": {"choices": {"a": [1, 2]}}, section: value}
    with pytest.raises(ConfigError) as refused:
        study_of(YamlDocument("study", data, {}), study)
    assert where in str(refused.value)
    assert "x1" not in str(refused.value)


def test_what_only_sounds_like_a_secret_is_taken(tmp_path: Path) -> None:
    options = {"tokenizer": "bpe", "end_token": "<end>", "tokens": 3, "keys": ["a"], "secretary": "b", "password": ""}
    stated = {"type": "module", "function": "score.py:score", "price": "score.py:price", "options": options}
    load_study(scored_study.write(tmp_path, evaluator=stated))


def test_promise_11_no_member_of_an_archive_lands_anywhere(tmp_path: Path) -> None:
    from kdnas.datasets import DATASETS

    (tmp_path / "in").mkdir()
    payload = tmp_path / "in" / "a.png"
    payload.write_bytes(b"harm")
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        tar.add(payload, arcname="../../escaped.png")
        tar.add(payload, arcname=str(tmp_path / "absolute.png"))
        link = tarfile.TarInfo("train/a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError):
        DATASETS.build("image_folder", tmp_path, tmp_path / "cache", path="pictures.tar", size=[8, 8])
    assert not (tmp_path / "absolute.png").exists()
    assert not (tmp_path.parent / "escaped.png").exists()
    assert not (tmp_path / "escaped.png").exists()


def test_promise_12_names_are_text(tmp_path: Path) -> None:
    run = synthetic_run.synthetic_run(tmp_path)
    run = dataclasses.replace(run, class_names=(synthetic_run.HOSTILE, "b"))
    assert synthetic_run.HOSTILE not in page(run)
    assert printable("a\x1b[31mred\x1b]0;title\x07\x07") == "ared"
    hostile = "![x](http://evil/p.png) <script> [a](b) `c` | d\n# e"
    assert _plain(hostile) == r"\!\[x\]\(http://evil/p.png\) \<script\> \[a\]\(b\) \`c\` \| d \# e"


def test_promise_13_pipes_and_devices_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kdnas.datasets import DATASETS

    study = scored_study.write(tmp_path)
    for name in ("study.yaml", "space.yaml"):
        kept = (study / name).read_text()
        for make in (os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")):
            (study / name).unlink()
            make(study / name)
            assert main(["validate", str(study / "study.yaml")]) == 2
            assert "not a file" in capsys.readouterr().err
        (study / name).unlink()
        (study / name).write_text(kept)
    for kind, options in (
        ("npz", {"path": "data"}),
        ("image_folder", {"path": "data", "size": [8, 8]}),
        ("parquet", {"train": "data", "test": "data"}),
        ("text_corpus", {"train": "data", "test": "data", "tokenizer": "bytes"}),
        ("text_table", {"train": "data", "test": "data", "tokenizer": "bytes"}),
    ):
        for make in (os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")):
            make(tmp_path / "data")
            with pytest.raises(InputError, match="not a file"):
                DATASETS.build(kind, tmp_path, tmp_path / "cache", **options)
            (tmp_path / "data").unlink()
    run = tmp_path / "run"
    run.mkdir()
    os.mkfifo(run / "study.lock.yaml")
    assert main(["front", str(run)]) == 2
    assert "is a pipe, not a file" in capsys.readouterr().err


def test_promise_14_what_lies_in_the_cache_is_compared(tmp_path: Path) -> None:
    """Every kind of damage to every kind of kept file: tests/faults/test_damaged_caches.py."""
    from kdnas.datasets import DATASETS

    images = np.zeros((20, 8, 8), np.uint8)
    images[:, 0, 0] = np.arange(20) * 10
    labels = np.arange(20) % 2
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    data = DATASETS.build("npz", tmp_path, tmp_path / "cache", path="d.npz")
    (kept,) = (tmp_path / "cache").glob("datasets/*/images.npy")
    shutil.copyfile(kept, tmp_path / "copy")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert DATASETS.build("npz", tmp_path, tmp_path / "cache", path="d.npz").fingerprint == data.fingerprint
    assert kept.read_bytes() == (tmp_path / "copy").read_bytes()


STRANGE = "postgresql://me@127.0.0.1:{port}/trials"


@pytest.fixture
def server() -> Any:
    """What listens where a database would, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def called(server: socket.socket) -> bool:
    """Whether anybody has connected."""
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.fixture
def strange_run(tmp_path: Path, server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of somebody else, kept in a database at `server`."""
    study = scored_study.write(tmp_path)
    run = tmp_path / "run"
    assert search(study, run).code == 0
    text = (run / "study.lock.yaml").read_text()
    url = STRANGE.format(port=server.getsockname()[1])
    assert "\n  storage: null\n" in text
    (run / "study.lock.yaml").write_text(text.replace("\n  storage: null\n", f"\n  storage: {url}\n"))
    monkeypatch.setenv("KDNAS_CONFIG", str(tmp_path / "another user"))
    monkeypatch.setenv("PGPASSWORD", "x1")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    return run


def test_promise_15_a_strangers_database_is_not_asked(
    strange_run: Path, server: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("psycopg")
    url = STRANGE.format(port=server.getsockname()[1])
    commands = [
        [verb, str(strange_run), *more]
        for verb, *more in (
            ("front",),
            ("report",),
            ("report", "--leave-out", "1"),
            ("dashboard", "--port", "0"),
            ("export", "--out", str(tmp_path / "student")),
            ("train",),
            ("schedule",),
            ("audit",),
            ("measure", "--target", "cpu"),
        )
    ]
    study = tmp_path / "scored"
    commands.append(["search", str(study), "--out", str(strange_run), "--data-root", str(study)])
    commands.append(["search", str(strange_run), "--data-root", str(study)])
    for command in commands:
        assert main(command) == 2, command
        refused = capsys.readouterr().err
        assert "no study of yours" in refused, command
        assert url in refused
    assert not called(server)


def test_a_database_that_the_user_names_is_asked(
    strange_run: Path, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg")
    server.setblocking(True)
    seen: list[bytes] = []

    def answer() -> None:
        connection = server.accept()[0]
        seen.append(connection.recv(8))
        connection.close()

    listener = threading.Thread(target=answer, daemon=True)
    listener.start()
    monkeypatch.setenv("KDNAS_STORAGE", STRANGE.format(port=server.getsockname()[1]))
    assert main(["front", str(strange_run)]) == 2  # it is no database
    listener.join(10)
    assert seen


def test_promise_16_links_out_of_a_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = scored_study.write(tmp_path)
    run = tmp_path / "run"
    assert search(study, run).code == 0
    for place in ("study.lock.yaml", "study.db", "report.html", "export", "checkpoints", "training/a", "supernet/w"):
        link, outside = run / place, tmp_path / "outside"
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.exists():
            link.rename(outside)
        else:
            outside.mkdir()
        link.symlink_to(outside)
        before = sorted(tmp_path.rglob("*"))
        for verb, *more in (("front",), ("report",), ("export", "--out", str(tmp_path / "o")), ("search",)):
            assert main([verb, str(run), *more]) == 2, (verb, place)
            assert f"{link} is a link that leads out of its folder" in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before
        link.unlink()
        outside.rename(link)


def test_links_that_stay_in_a_run_are_followed(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "latest").symlink_to("checkpoints")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    refuse_links(tmp_path / "link")


@pytest.mark.parametrize("place", ["study.lock.yaml", "report.html", "export"])
def test_links_in_a_circle_are_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / place).symlink_to("other")
    (tmp_path / "other").symlink_to(place)
    with pytest.raises(RunFolderError, match="is a link that leads in a circle"):
        refuse_links(tmp_path)


def test_a_search_and_a_training_make_nothing_where_a_link_leads_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "outside")
    study = scored_study.write(tmp_path)
    assert main(["search", str(study), "--out", str(tmp_path / "run"), "--data-root", str(study)]) == 2
    assert "leads out of its folder" in capsys.readouterr().err
    with pytest.raises(RunFolderError, match="leads out of its folder"):
        claim(tmp_path / "run", {})
    assert not list((tmp_path / "outside").iterdir())
