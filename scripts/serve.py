"""Serve parts of the suite to other programs.

    python -m scripts.serve retriever --corpus corpus.jsonl
    python -m scripts.serve mcp env=alfworld
    python -m scripts.serve mcp --http env=search env.train_tasks=100
    python -m scripts.serve openenv env=sokoban

`retriever` answers `POST /retrieve` in the formats of Search-R1, verl and verl-agent, so their users only change a URL.
It needs the extra `serve`. `mcp` offers an environment to clients of the Model Context Protocol, over HTTP, or over
stdin and stdout to the program that starts it. It needs the extra `tools`. `openenv` offers one to clients of OpenEnv,
and needs the extra `openenv`. Without --host, all accept connections from this machine only.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from envs.core import TaskSet
from envs.search.retrieval import RETRIEVERS, RetrieverSpec, open_retriever
from scripts.common import Arguments, command, make_task_set, path_argument, run

if TYPE_CHECKING:
    from envs.served import ServerLimits

LOOPBACK = "127.0.0.1"


def main() -> None:
    """Read the command line, and serve until it is interrupted."""
    parser = Arguments(prog="python -m scripts.serve", description="Serve parts of the suite to other programs.")
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    what = "passages of a corpus: POST /retrieve, as the servers of Search-R1 and verl-agent"
    retriever = commands.add_parser("retriever", help=what, description=what)
    retriever.add_argument(
        "--corpus", type=path_argument, metavar="FILE", help="a JSONL file of {title, text}; else --people"
    )
    retriever.add_argument("--people", type=int, default=480, help="size of the generated world (%(default)s)")
    local = [name for name in RETRIEVERS if name != "remote"]
    retriever.add_argument("--retriever", choices=local, default="bm25", help="kind of retrieval (%(default)s)")
    retriever.add_argument("--model", help="for dense and hybrid: a folder or a name of sentence-transformers")
    retriever.add_argument("--host", default=LOOPBACK, help="address to listen on (%(default)s)")
    retriever.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    retriever.add_argument("--topk", type=int, default=3, help="passages if a request has no topk (%(default)s)")
    retriever.add_argument(
        "--most-topk", type=int, default=100, help="largest topk that a request may have (%(default)s)"
    )
    retriever.add_argument("--deadline", type=float, default=60.0, help="seconds for a request (%(default)s)")
    _add_mcp(commands)
    _add_openenv(commands)
    args = parser.parse_args()
    if args.what == "retriever":
        serve_retriever(args)
    else:
        serve_environment(args)


def serve_retriever(args: Namespace) -> None:
    """Serve passages."""
    import uvicorn

    from envs.search.server import Limits, make_app

    if not (1 <= args.topk <= args.most_topk and args.deadline > 0):  # NaN is not more than 0
        raise ValueError("--topk must be from 1 to --most-topk, and --deadline more than 0 seconds")
    corpus = args.corpus
    if corpus is not None and not corpus.is_file():
        raise FileNotFoundError(f"no corpus at {corpus}")
    listening = _listen(args.host, args.port)
    if corpus is None:
        from envs.search.generate import embedded_world

        corpus = embedded_world(args.people).corpus
    if args.model and args.retriever == "bm25":
        raise ValueError("--model is for --retriever dense and hybrid; bm25 has no model")
    retriever = open_retriever(RetrieverSpec(args.retriever, corpus, model=args.model))
    limits = Limits(default_k=args.topk, most_k=args.most_topk, deadline=args.deadline)
    facts = retriever.facts()
    print(
        f"{facts['retriever']} over {facts['passages']:,} passages of {corpus}, index {facts['index'][:12]}", flush=True
    )
    address, number = listening.getsockname()[:2]
    print(f"serving passages at http://{address}:{number}/retrieve", flush=True)
    if args.host != LOOPBACK:
        print(f"listening on {args.host}: everybody who reaches this address may search", flush=True)
    config = uvicorn.Config(
        make_app(retriever, limits), log_level="warning", access_log=False, timeout_keep_alive=30,
        h11_max_incomplete_event_size=1 << 16,
    )  # fmt: skip
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. It is made before anything is loaded, so a port in use raises `OSError` at once."""
    if not 0 <= port <= 65_535:
        raise ValueError(f"--port must be from 0 to 65535, got {port}")
    if not host:  # a socket would listen on all addresses
        raise ValueError(f"--host must be an address, such as {LOOPBACK}, or 0.0.0.0 for all of this machine")
    try:
        return socket.create_server((host, port))
    except OSError as error:
        known = {errno.EADDRINUSE: "the port is in use", errno.EADDRNOTAVAIL: "this machine has no such address"}
        why = known.get(error.errno or 0, error.strerror or str(error))
        raise OSError(
            f"cannot listen on {host}:{port}: {why}; choose others with --host and --port (0: any port that is free)"
        ) from error


def _add_mcp(commands: Any) -> None:
    what = "an environment, as a server of the Model Context Protocol: tools reset, step, admissible_actions, tasks"
    mcp = commands.add_parser("mcp", help=what, description=what)
    _add_overrides(mcp)
    mcp.add_argument("--http", action="store_true", help="listen on an address; else one client at stdin and stdout")
    mcp.add_argument("--host", help=f"with --http: address to listen on ({LOOPBACK})")
    mcp.add_argument("--port", type=int, help="with --http: 0 is any that is free (8000)")
    mcp.add_argument("--sessions", type=int, help="with --http: clients at a time (64)")
    mcp.add_argument("--idle", type=float, help="with --http: seconds without a request that end a session (1800)")


def _add_openenv(commands: Any) -> None:
    what = "an environment, as a server of OpenEnv: a session for each client, at /ws"
    openenv = commands.add_parser("openenv", help=what, description=what)
    _add_overrides(openenv)
    openenv.add_argument("--host", help=f"address to listen on ({LOOPBACK})")
    openenv.add_argument("--port", type=int, help="0 is any that is free (8000)")
    openenv.add_argument("--sessions", type=int, help="clients at a time (64)")
    openenv.add_argument("--idle", type=float, help="seconds without a request that end a session (1800)")


def _add_overrides(parser: Any) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="env=NAME and its settings: env.max_turns=20")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds for a reset or a step (%(default)s)")


def serve_environment(args: Namespace) -> None:
    """Serve an environment; its configuration is that of the other commands."""
    of_http = {"host": LOOPBACK, "port": 8000, "sessions": 64, "idle": 1800.0}
    over_http = args.what == "openenv" or args.http
    for name, default in of_http.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif not over_http:
            raise ValueError(f"--{name} needs --http; without it the server has one client, at stdin and stdout")
    if not (args.sessions >= 1 and args.idle > 0 and args.deadline > 0):
        raise ValueError("--sessions must be at least 1, and --idle and --deadline more than 0 seconds")
    from envs.served import ServerLimits

    if args.what == "openenv":  # whether it is installed
        from envs.openenv.server import make_app
    limits = ServerLimits(args.sessions, args.idle, args.deadline)
    listening = _listen(args.host, args.port) if over_http else None

    @command("serve")
    def serve(cfg: DictConfig) -> None:
        with redirect_stdout(sys.stderr):  # stdout is for messages alone
            task_set = make_task_set(cfg)
            print(task_set.describe(), flush=True)
        if listening is None:
            _serve_stdio(task_set, limits)
        elif args.what == "openenv":
            _serve_http(make_app(task_set, limits), task_set.env_id, args.host, "", listening)
        else:
            from envs.mcp.server import http_app

            _serve_http(http_app(task_set, limits, args.host), task_set.env_id, args.host, "/mcp", listening)

    sys.argv = [sys.argv[0], *args.overrides]
    serve()


def _serve_stdio(task_set: TaskSet, limits: ServerLimits) -> None:
    from envs.mcp.server import serve_stdio

    try:
        serve_stdio(task_set, limits)
    except (KeyboardInterrupt, SystemExit) as error:
        # A thread waits for a line of stdin and would keep the process until there is one.
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 130)


def _serve_http(app: Any, env_id: str, host: str, path: str, listening: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    with listening:
        address, number = listening.getsockname()[:2]
        print(f"serving {env_id} at http://{address}:{number}{path}", file=sys.stderr, flush=True)
        if host != LOOPBACK:
            print(f"listening on {host}: everybody who reaches this address may play", file=sys.stderr, flush=True)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    run(main)
