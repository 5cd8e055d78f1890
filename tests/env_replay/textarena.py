"""Recordings of TextArena's games, for one player or several: every text, whose turn it is, and the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from envs.textarena.game import Game, registry
from envs.textarena.tasks import GAMES, folder_of
from tests.env_replay.kinds import Kind
from tests.recordings import Recorder

LONGEST, KEPT = 3000, 1500  # characters: of longer observations the recordings have the last ones


def _episodes(data: dict[str, Any], stock: Path, recorder: Recorder) -> None:
    del stock
    known = registry()
    for name, status in data.get("status", {}).items():
        if name in known and not status.get("ok"):
            recorder.check(f"{name}, is played", folder_of(known[name]) in GAMES, False)
    for episode in data["episodes"]:
        recorder.cases += 1
        where = f"{episode['env_id']}, seed {episode['seed']}"
        game = Game(episode["env_id"], episode["seed"], episode["num_players"])
        player, text = _look(game)
        recorder.check_fields(f"{where}, reset", {"player": player, "observation": text}, episode["reset"])
        for number, step in enumerate(episode["steps"], start=1):
            ours: dict[str, Any] = {"player": player, "action": step["action"], "done": game.step(step["action"])}
            if ours["done"]:
                ours |= zip(("rewards", "game_info"), json.loads(json.dumps(game.result())), strict=True)
            else:
                player, text = _look(game)
                ours |= {"next_player": player, "observation": text}
            recorder.check_fields(f"{where}, step {number}", ours, step)


def _look(game: Game) -> tuple[int, str]:
    player, text = game.look()
    return player, text if len(text) <= LONGEST else text[-KEPT:]


KINDS = (Kind("textarena/episodes", _episodes, "textarena", ("episodes",)),)
