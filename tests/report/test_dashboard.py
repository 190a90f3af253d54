"""The live page, really served on a free port of the loopback address. The run is synthetic."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import types
from dataclasses import replace

import pytest
from synthetic_run import complete, run_of

from kdnas.errors import InputError, RunFolderError
from kdnas.record.database import database_of
from kdnas.report.dashboard import DashboardServer


@pytest.fixture
def record(tmp_path, monkeypatch):
    """A run folder whose record is a stand-in: its trials are `record.trials`, its version the file's."""
    (tmp_path / "study.db").write_bytes(b"1")
    state = types.SimpleNamespace(folder=tmp_path, trials=[complete(0, 0.5, 50)], loads=0, error=None)

    def load_run(folder):
        state.loads += 1
        if state.error:
            raise state.error
        return replace(run_of(state.trials), folder=folder)

    monkeypatch.setattr("kdnas.record.storage.load_run", load_run)
    return state


@pytest.fixture
def server(record):
    with DashboardServer(record.folder, database_of(record.folder, "s"), 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join(5)


def ask(server, path="/", method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{server.port}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_it_listens_on_the_loopback_address_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.port}/"


def test_the_page_is_live_and_rendered_once_a_change(server, record):
    answer, first = ask(server)
    assert (answer.status, answer.getheader("Content-Type")) == (200, "text/html; charset=utf-8")
    assert b"1 trial: 1 complete" in first
    assert b"connect-src 'self'" in first
    ask(server)
    assert record.loads == 1
    version = json.loads(ask(server, "/version")[1])["version"]
    assert version.encode() in first

    record.trials.append(complete(1, 0.9, 60))
    (record.folder / "study.db").write_bytes(b"22")
    assert json.loads(ask(server, "/version")[1])["version"] != version
    assert b"2 trials: 2 complete" in ask(server)[1]


def test_a_change_in_the_write_ahead_log_counts(server, record):
    before = json.loads(ask(server, "/version")[1])["version"]
    (record.folder / "study.db-wal").write_bytes(b"x")
    assert json.loads(ask(server, "/version")[1])["version"] != before


def test_head_has_no_body(server):
    answer, body = ask(server, method="HEAD")
    assert (answer.status, body) == (200, b"")
    assert int(answer.getheader("Content-Length")) > 1_000_000


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(server, method):
    answer, _ = ask(server, method=method)
    assert (answer.status, answer.getheader("Allow")) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["/study.db", "/../study.db", "/%2e%2e/study.db", "//study.db", "/version/..", "/etc/passwd"]
)
def test_no_other_path_exists(server, path):
    assert ask(server, path)[0].status == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0"])
def test_a_request_under_another_name_is_refused(server, host):
    answer, body = ask(server, host=host)
    assert answer.status == 403
    assert b"synthetic" not in body


def test_localhost_is_a_name_of_this_machine(server):
    assert ask(server, "/version", host=f"localhost:{server.port}")[0].status == 200


def test_a_record_that_cannot_be_read_is_said_and_tried_again(server, record):
    record.error = RunFolderError("study.db is <damaged>")
    answer, body = ask(server)
    assert answer.status == 503
    assert b"study.db is &lt;damaged&gt;" in body
    record.error = None
    assert ask(server)[0].status == 200


def test_a_taken_port_is_bad_input(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"port \d+ of 127.0.0.1 is in use; choose another with --port"):
            DashboardServer(tmp_path, database_of(tmp_path, "s"), taken.getsockname()[1])


def test_a_port_out_of_range_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="not a port"):
        DashboardServer(tmp_path, database_of(tmp_path, "s"), 70_000)
