"""A server of tools that fail in all ways: `python odd.py [--http PORT]`. Written with the `mcp` package alone."""

import os
import sys
import time

from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, ImageContent, TextContent

server = MCPServer("odd")
calls = 0


@server.tool()
def echo(text: str) -> str:
    """Say the text."""
    return text


@server.tool()
def add(a: float, b: float = 1.0) -> float:
    """The sum of two numbers."""
    return a + b


@server.tool()
def count() -> int:
    """How often this was called."""
    global calls
    calls += 1
    return calls


@server.tool()
def boom() -> str:
    """Raise."""
    raise RuntimeError("a secret")


@server.tool()
def die() -> str:
    """End the server in the middle of the call."""
    sys.stderr.write("goodbye\n")
    os._exit(3)


@server.tool()
def hang() -> str:
    """Never answer."""
    time.sleep(3600)
    return ""


@server.tool()
def huge(megabytes: int) -> str:
    """Answer with very much."""
    return "x" * (megabytes << 20)


@server.tool()
def picture() -> CallToolResult:
    """Answer with what is no text."""
    return CallToolResult(content=[ImageContent(data="AAAA", mime_type="image/png"), TextContent(text="a dot")])


if __name__ == "__main__":
    if "--http" in sys.argv:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[sys.argv.index("--http") + 1]))
    else:
        server.run()
