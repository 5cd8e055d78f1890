"""An environment as somebody else may serve it, with the `mcp` package alone: count to three."""

import os
import sys
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("foreign")
state = {"count": 0, "seed": 0}


@server.tool()
def reset(seed: int = 0) -> dict[str, Any]:
    """Start at zero."""
    state.update(count=0, seed=seed)
    return {"observation": f"Count to three. Seed {seed}.", "score": -3}


@server.tool()
def step(action: str) -> Any:
    """Say the next number."""
    if action == "die":
        os._exit(1)
    if action == "text":
        return "just a text"
    if action == "stop":
        return {"observation": "Time is up.", "truncated": True}
    if not action.isdecimal():
        raise ToolError("say a number")
    state["count"] += int(action) == state["count"] + 1
    done = state["count"] == 3
    return {"observation": f"at {state['count']}", "reward": float(done), "terminated": done, "admissible": ("1", "2")}


if __name__ == "__main__":
    if "--without-seed" in sys.argv:
        server.remove_tool("reset")

        @server.tool(name="reset")
        def start() -> dict[str, Any]:
            """Start at zero."""
            return reset(0)

    server.run()
