"""A server over HTTP that breaks rules, in a thread of the tests and without the `mcp` package."""

import gzip
import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MEGABYTES = 100


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mode: str

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "id" not in message:
            return self.empty(202)
        match message["method"]:
            case "initialize":
                version, info = message["params"]["protocolVersion"], {"name": self.mode, "version": "0"}
                return self.result(message, {"protocolVersion": version, "capabilities": {}, "serverInfo": info})
            case "tools/list":
                return self.result(message, {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]})
            case "tools/call":
                return self.call(message)
        return self.send({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "unknown"}})

    def do_GET(self) -> None:
        self.empty(405)

    def do_DELETE(self) -> None:
        self.empty(405)

    def call(self, message: dict[str, Any]) -> None:
        match self.mode:
            case "large":
                self.chunks("application/json", (b"x" * (1 << 20) for _ in range(MEGABYTES)))
            case "large event":
                self.chunks("text/event-stream", (b"data: " + b"x" * (1 << 20) + b"\n" for _ in range(MEGABYTES)))
            case "compressed":
                body = gzip.compress(b"0" * (1 << 20))
                self.body(body, "application/json", {"Content-Encoding": "gzip"})
            case "slow":
                self.chunks("application/json", (time.sleep(0.02) or b" " for _ in range(1000)))
            case "surrogates":
                body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {"content": "\ud800"}})
                self.body(body.encode(), "application/json")
            case "elsewhere":
                self.empty(307, {"Location": "http://elsewhere.invalid/"})
            case "broken":
                self.empty(500)
            case "accepted":
                self.empty(202)

    def result(self, message: dict[str, Any], result: dict[str, Any]) -> None:
        self.send({"jsonrpc": "2.0", "id": message["id"], "result": result})

    def send(self, message: dict[str, Any]) -> None:
        self.body(json.dumps(message).encode(), "application/json")

    def empty(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def body(self, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def chunks(self, kind: str, chunks: Iterable[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):  # the client has enough
            for chunk in chunks:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))

    def log_message(self, *_: object) -> None: ...


@contextmanager
def breaking(mode: str) -> Iterator[str]:
    """The URL of such a server, until the end of the block."""
    handler = type("Breaking", (Handler,), {"mode": mode})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/mcp"
        server.shutdown()
