"""A server of files on this machine, which can fail on purpose."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class FileServer(ThreadingHTTPServer):
    """Serves one file under any name, or several by theirs, with the failures that a test sets."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.contents: dict[str, bytes] = {}  # by the last part of the address
        self.content_type = "application/octet-stream"
        self.ranges = True  # whether parts can be asked for
        self.cuts: list[int] = []  # after how many bytes the next connections end
        self.statuses: list[int] = []  # what the next requests are answered with instead
        self.asked: list[str | None] = []  # the range of each request

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def running(self) -> Iterator["FileServer"]:
        """Until the end of the block."""
        with self:
            thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield self
            self.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        content = self.server.contents.get(self.path.rpartition("/")[2], self.server.content)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        status = 416 if start and start >= len(content) else 0
        if self.server.statuses or status:
            self.send_error(status or self.server.statuses.pop(0))
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cuts.pop(0)] if self.server.cuts else body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass
