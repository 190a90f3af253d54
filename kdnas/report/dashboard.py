"""A run's page, live: a read-only web server on the loopback address, from the standard library alone.

Only `/` and `/version` exist, only GET and HEAD are answered, and only requests that name the loopback address as
their host: a page of another site cannot read a run through a name that it points at this machine.
"""

from __future__ import annotations

import errno
import html
import http.server
import json
import socketserver
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdnas.errors import InputError, KdnasError
from kdnas.record.run_folder import LOCK_FILE

if TYPE_CHECKING:
    from kdnas.record.database import Database

ADDRESS = "127.0.0.1"


class LivePage:
    """The page of the run in `folder`, rendered again only when its record changed. Safe to use from many threads."""

    def __init__(self, folder: Path, database: Database):
        self._folder = folder
        self._database = database
        self._lock = threading.Lock()
        self._version = ""
        self._html = b""

    def version(self) -> str:
        """Return a text that changes when the record does."""
        with suppress(FileNotFoundError):
            return f"{self._database.mark}|{(self._folder / LOCK_FILE).stat().st_mtime_ns}"
        return self._database.mark

    def render(self) -> bytes:
        """Return the page as UTF-8. Raises RunFolderError where the record cannot be read."""
        from kdnas.record.storage import load_run
        from kdnas.report.page import page

        with self._lock:
            # Taken before reading: a change while reading makes the next request render again.
            version = self.version()
            if version != self._version or not self._html:
                self._html = page(load_run(self._folder), version=version).encode()
                self._version = version
            return self._html


class DashboardServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """The server of one run's live page; `url` is where it listens. Port 0 takes a free one.

    Raises InputError when the port is taken or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path, database: Database, port: int):
        self.page = LivePage(folder, database)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OverflowError:
            raise InputError(f"port {port} is not a port (allowed: 0 to 65535)") from None
        except OSError as error:
            taken = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
            raise InputError(f"port {port} of {ADDRESS} {taken}; choose another with --port") from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing where a reader has left in the middle of an answer; else one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"a request could not be answered: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address to open in a browser."""
        return f"http://{ADDRESS}:{self.port}/"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: DashboardServer
    server_version = "kdnas"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        """Answer `/` with the page and `/version` with its version."""
        if not self._host_is_loopback():
            return self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"only the loopback address is served\n")
        path = urlsplit(self.path).path
        if path == "/version":
            body = json.dumps({"version": self.server.page.version()}).encode()
            return self._answer(HTTPStatus.OK, "application/json", body)
        if path == "/":
            try:
                return self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page.render())
            except KdnasError as error:
                return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/html; charset=utf-8", _trouble(str(error)))
        return self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is only /\n")

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"read-only: GET and HEAD\n", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def log_message(self, format: str, *args: object) -> None:
        """Keep the terminal quiet."""

    def _host_is_loopback(self) -> bool:
        host = self.headers.get("Host", "")
        return host in {f"{name}:{self.server.port}" for name in (ADDRESS, "localhost")}

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _trouble(message: str) -> bytes:
    """Return a page with the reason why the record cannot be shown now, which reloads by itself."""
    return (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
        "<title>kdnas</title>"
        f"<p>The run cannot be shown now; this page tries again by itself.</p><pre>{html.escape(message)}</pre></html>"
    ).encode()
