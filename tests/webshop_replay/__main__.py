"""The command: replay every recording in a folder and print the differences."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from envs.core import data_root
from envs.webshop.catalogue import CatalogueNotFoundError
from tests.recordings import Recordings
from tests.webshop_replay.replay import REPLAYS, Stock, kind_of

RECORDINGS = Recordings(
    lambda _, data: kind_of(data), REPLAYS, left_out="passed over", missing={CatalogueNotFoundError: "no catalogue"}
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of `Recordings.replay_folder`."""
    parser = argparse.ArgumentParser(prog="tests.webshop_replay", description="replay recordings of WebShop")
    parser.add_argument("folder", type=Path, help="folder of *.json files, recordings of the official environment")
    parser.add_argument("--catalogue", type=Path, help="folder of the catalogue (default: webshop in the data folder)")
    arguments = parser.parse_args(argv)
    return RECORDINGS.replay_folder(parser, arguments.folder, Stock(arguments.catalogue or data_root() / "webshop"))


if __name__ == "__main__":
    raise SystemExit(main())
