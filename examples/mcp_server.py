"""A server of the Model Context Protocol with one tool, for `env=mcp`."""

from mcp.server.mcpserver import MCPServer

server = MCPServer("sums")


@server.tool()
def add(a: float, b: float) -> float:
    """The sum of two numbers."""
    return a + b


if __name__ == "__main__":
    server.run()
