"""A local server with OpenAI's protocol whose answers a test chooses."""

import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], str]


USAGE = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}


def answered(text: Any, finish: str | None = "stop", usage: Any = USAGE, **fields: Any) -> Reply:
    """An answer; `fields` are added to its message."""
    message = {"role": "assistant", "content": text, **fields}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return (
        200,
        {},
        json.dumps(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        ),
    )


def refused(message: str, status: int = 400, **fields: Any) -> Reply:
    """An error in OpenAI's format; `fields` such as `code` and `param` are added."""
    return status, {}, json.dumps({"error": {"message": message, "type": "invalid_request_error", **fields}})


class Server:
    """Answers each request with `reply(request)`, and keeps what was asked. `models` are what it says it serves."""

    def __init__(self, reply: Callable[[dict], Reply], models: Sequence[dict] = ()) -> None:
        self.asked: list[dict] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.say(200, {}, json.dumps({"object": "list", "data": list(models)}))

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
                outer.asked.append(request)
                self.say(*reply(request))

            def say(self, status: int, headers: dict[str, str], body: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


Serve = Callable[[Callable[[dict], Reply]], Server]  # what the fixture `serve` is
