"""Download published data: `python -m scripts.download alfworld`, `webshop`, `search` and others.

It can be interrupted and run again.

--data   where to put it (default: $POLYTURN_DATA, otherwise the folder that environments read)
--from   copy it from a folder with the published files instead of downloading it
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from envs.alfworld import download as alfworld
from envs.core import data_root
from envs.search import download as search
from envs.sokoban import download as boxoban
from envs.textcraft import download as textcraft
from envs.webshop import download as webshop
from scripts.common import Arguments, path_argument, run


def main() -> None:
    """Read the command line, and download the data."""
    parser = Arguments(prog="python -m scripts.download", description="Download published data.")
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    shared = Arguments(add_help=False)
    shared.add_argument(
        "--data", type=path_argument, metavar="DIR", help="where to put it (default: where environments look)"
    )
    shared.add_argument("--from", dest="mirror", type=path_argument, metavar="DIR", help="a folder that has the files")

    what = "the official games of ALFWorld: 37 MB, unpacked 340 MB"
    command = commands.add_parser("alfworld", parents=[shared], help=what, description=what)
    command.add_argument(
        "--trajectories",
        action="store_true",
        help="also traj_data.json for each game (72 MB more), which the alfworld package's own loader needs",
    )
    what = "the official catalogues of WebShop: 1,000 products, or all 1.18 million (5 GB)"
    command = commands.add_parser("webshop", parents=[shared], help=what, description=what)
    command.add_argument("--size", choices=sorted(webshop.FILES), default="small", help="which one (%(default)s)")
    command.add_argument(
        "--nouns",
        action="store_true",
        help="find the nouns of the products' names, which rewards need (known for the 1,000 products; pip install "
        "polyturn[webshop]; an hour for a million)",
    )
    what = "the usual question sets, and the corpus wiki-18 that they are asked about"
    command = commands.add_parser("search", parents=[shared], help=what, description=what)
    command.add_argument(
        "--sets", nargs="*", default=list(search.SETS), metavar="SET", help="which ones, or none (all: %(default)s)"
    )
    command.add_argument("--corpus", action="store_true", help="also wiki-18: 21 million passages, 14 GB unpacked")

    what = "the recipes of TextCraft and ADaPT's test games: 1 MB"
    commands.add_parser("textcraft", parents=[shared], help=what, description=what)
    what = "Boxoban's levels for env=sokoban: a million and a half, 170 MB unpacked"
    commands.add_parser("boxoban", parents=[shared], help=what, description=what)
    what = "databases, policies and tasks of tau-bench: 8 MB"
    commands.add_parser("tau_bench", parents=[shared], help=what, description=what)

    args = parser.parse_args()
    data = args.data.expanduser() if args.data else data_root()
    with _without_empty_folders(data):
        _install(args, data)


def _install(args: Namespace, data: Path) -> None:
    if args.mirror is not None and not args.mirror.is_dir():
        raise FileNotFoundError(f"--from needs a folder, and {args.mirror} is none")
    if args.what == "alfworld":
        archives = (alfworld.GAMES, alfworld.TRAJECTORIES) if args.trajectories else (alfworld.GAMES,)
        alfworld.install(data, args.mirror, archives)
    elif args.what == "search":
        search.install(data, args.sets, args.mirror)
        if args.corpus:
            search.install_corpus(data, args.mirror)
    elif args.what == "tau_bench":
        from envs.tau_bench import download as tau_bench  # needs the extra of env=tools

        tau_bench.install(data, args.mirror)
    elif args.what == "textcraft":
        textcraft.install(data, args.mirror)
    elif args.what == "boxoban":
        boxoban.install(data, args.mirror)
    else:
        webshop.install(data, args.size, args.mirror, args.nouns)


@contextmanager
def _without_empty_folders(data: Path) -> Iterator[None]:
    """After an error, remove the empty folders that were created for the data."""
    before = _folders(data)
    try:
        yield
    except BaseException:
        for folder in sorted(_folders(data) - before, reverse=True):
            with suppress(OSError):  # not empty
                folder.rmdir()
        raise


def _folders(data: Path) -> set[Path]:
    """The folders around and in `data`, two levels deep."""
    return {place for place in (*data.parents, data, *data.glob("*"), *data.glob("*/*")) if place.is_dir()}


if __name__ == "__main__":
    run(main)
