"""The command: replay every recording in a folder and print the differences."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from envs.core import NoDataError, data_root
from tests.recordings import Recordings
from tests.search_replay.replay import REPLAYS, NotInstalledError, Stock, kind_of

RECORDINGS = Recordings(
    lambda path, _: kind_of(path),
    REPLAYS,
    missing={NoDataError: "no corpus", NotInstalledError: "not installed"},
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of `Recordings.replay_folder`."""
    parser = argparse.ArgumentParser(prog="tests.search_replay", description="replay recordings of search agents")
    parser.add_argument("folder", type=Path, help="folder of *.json files")
    parser.add_argument("--corpus", type=Path, help="the passages (default: qa/search_corpus.jsonl in the data folder)")
    arguments = parser.parse_args(argv)
    stock = Stock(arguments.corpus or data_root() / "qa" / "search_corpus.jsonl")
    return RECORDINGS.replay_folder(parser, arguments.folder, stock)


if __name__ == "__main__":
    raise SystemExit(main())
