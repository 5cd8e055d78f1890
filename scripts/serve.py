"""Serve parts of the suite to other programs: `python -m scripts.serve retriever --corpus corpus.jsonl`.

The retriever answers `POST /retrieve` in the formats of Search-R1, verl and verl-agent, so that their users only change
a URL. It listens on this machine alone unless --host says otherwise. Needs the extra `serve`.
"""

from __future__ import annotations

from pathlib import Path

from envs.search.retrieval import RETRIEVERS, RetrieverSpec, open_retriever
from scripts.common import Arguments, run

LOOPBACK = "127.0.0.1"


def main() -> None:
    """Read the command line and serve what it names until it is interrupted."""
    parser = Arguments(prog="python -m scripts.serve", description="Serve parts of the suite to other programs.")
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    what = "passages of a corpus: POST /retrieve, as the servers of Search-R1 and verl-agent"
    command = commands.add_parser("retriever", help=what, description=what)
    command.add_argument("--corpus", type=Path, metavar="FILE", help="a JSONL file of {title, text}; else --people")
    command.add_argument("--people", type=int, default=480, help="size of the generated world (%(default)s)")
    local = [name for name in RETRIEVERS if name != "remote"]
    command.add_argument("--retriever", choices=local, default="bm25", help="which one (%(default)s)")
    command.add_argument("--model", help="of dense and hybrid: a folder or a name of sentence-transformers")
    command.add_argument("--host", default=LOOPBACK, help="address to listen on (%(default)s)")
    command.add_argument("--port", type=int, default=8000, help="(%(default)s)")
    command.add_argument("--topk", type=int, default=3, help="passages where a request names none (%(default)s)")
    command.add_argument(
        "--most-topk", type=int, default=100, help="largest number that a request may name (%(default)s)"
    )
    command.add_argument("--deadline", type=float, default=60.0, help="seconds for a request (%(default)s)")
    args = parser.parse_args()
    try:
        import uvicorn

        from envs.search.server import Limits, make_app
    except ImportError as error:
        raise ImportError(f"{error}; a server needs the extra: pip install 'polyturn[serve]'") from error
    corpus = args.corpus
    if corpus is None:
        from envs.search.generate import embedded_world

        corpus = embedded_world(args.people).corpus
    retriever = open_retriever(RetrieverSpec(args.retriever, corpus, model=args.model))
    limits = Limits(default_k=args.topk, most_k=args.most_topk, deadline=args.deadline)
    facts = retriever.facts()
    print(
        f"{facts['retriever']} over {facts['passages']:,} passages of {corpus}, index {facts['index'][:12]}", flush=True
    )
    if args.host != LOOPBACK:
        print(f"listening on {args.host}: everybody who reaches this address may search", flush=True)
    uvicorn.run(
        make_app(retriever, limits), host=args.host, port=args.port, log_level="warning", access_log=False,
        timeout_keep_alive=30, h11_max_incomplete_event_size=1 << 16,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
