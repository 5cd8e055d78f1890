"""The command: replay every recording in a folder and in its subfolders, and print the differences."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from envs.core import NoDataError, data_root
from tests.env_replay import (
    babyai_text,
    ragen_games,
    scienceworld,
    sokoban,
    tau_bench,
    textarena,
    textcraft,
    textworld_cooking,
    textworld_express,
)
from tests.env_replay.kinds import Kind, kind_of
from tests.recordings import Recordings

# A module of this package for each environment.
KINDS: tuple[Kind, ...] = (
    *sokoban.KINDS, *ragen_games.KINDS, *tau_bench.KINDS, *textcraft.KINDS, *scienceworld.KINDS,
    *textworld_express.KINDS,
    *textworld_cooking.KINDS,
    *babyai_text.KINDS,
    *textarena.KINDS,
)  # fmt: skip
RECORDINGS = Recordings(
    lambda path, data: kind_of(path.resolve(), data, KINDS),
    {kind.name: kind.replay for kind in KINDS},
    missing={NoDataError: "no data", ModuleNotFoundError: "not installed"},
    pattern="**/*.json",
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of `Recordings.replay_folder`."""
    parser = argparse.ArgumentParser(prog="tests.env_replay", description="replay recordings of environments")
    parser.add_argument("folder", type=Path, help="folder of *.json files, or of such folders")
    parser.add_argument("--data", type=Path, help="the data folder (default: $POLYTURN_DATA)")
    arguments = parser.parse_args(argv)
    return RECORDINGS.replay_folder(parser, arguments.folder, arguments.data or data_root())


if __name__ == "__main__":
    raise SystemExit(main())
