"""Serve the page of runs on the loopback address, with new data while a run goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rich.console import Console

from envs.files import files_named
from scripts.page import html, pack
from scripts.page.collect import record_files

PORT = 8642
WATCHED = ("metrics.jsonl", "episodes.jsonl", "evaluation.json", "leaderboard.json")


def serve(collect: Callable[[], dict[str, Any]], paths: Sequence[Path], port: int, console: Console) -> None:
    """Serve until Ctrl-C. Raises `OSError` for a port in use."""
    server = server_of(collect, paths, port)
    console.print(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", soft_wrap=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        server.server_close()


def server_of(collect: Callable[[], dict[str, Any]], paths: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """The server, bound to its port but not serving yet. Port 0 means any free port."""
    live = _Live(collect, paths)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            # Another site could make a browser send requests here under its own host name (DNS rebinding), so the
            # server accepts only the names of this machine.
            if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
            elif address.path == "/":
                stamp, packed = live.packed()
                self._answer(html(packed, stamp), "text/html; charset=utf-8", stamp)
            elif address.path == "/data":
                stamp, packed = live.packed()
                same = parse_qs(address.query).get("have") == [stamp]
                self._answer(
                    "" if same else packed, "text/plain", stamp, HTTPStatus.NO_CONTENT if same else HTTPStatus.OK
                )
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _answer(self, text: str, kind: str, stamp: str, status: HTTPStatus = HTTPStatus.OK) -> None:
            body = text.encode()
            self.send_response(status)
            headers = {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "ETag": stamp,
                "Cache-Control": "no-store",
            }
            for name, value in {**headers, "X-Content-Type-Options": "nosniff"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Requests are not printed."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


class _Live:
    """The data of the page, collected again after a file of the runs has changed."""

    def __init__(self, collect: Callable[[], dict[str, Any]], paths: Sequence[Path]) -> None:
        self.collect, self.paths = collect, paths
        self._lock = threading.Lock()
        self._kept = ("", "")

    def packed(self) -> tuple[str, str]:
        """A stamp that changes whenever the files change, and the data as text."""
        with self._lock:
            stamp = self._stamp()
            if stamp != self._kept[0]:
                self._kept = (stamp, pack(self.collect()))
            return self._kept

    def _stamp(self) -> str:
        files = [path for path in self.paths if path.is_file()]
        for folder in (path for path in self.paths if path.is_dir()):
            for name in WATCHED:
                for file in files_named(folder, name):
                    files += [file, *record_files(file.parent)]
        seen = []
        for file in dict.fromkeys(files):
            try:
                seen.append((file.stat().st_mtime_ns, file.stat().st_size))
            except FileNotFoundError:
                continue  # the file was replaced after it was listed
        return f"{len(seen)}-{sum(size for _, size in seen)}-{max((time for time, _ in seen), default=0)}"
