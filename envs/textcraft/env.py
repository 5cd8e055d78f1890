"""Craft an item from what can be got: `polyturn/TextCraft-v0`.

    Crafting commands:
    craft 4 torch using 1 stick, 1 coal
    craft 1 coal block using 9 coal

    Goal: craft coal block.
    > get 9 coal
    Got 9 coal
    > craft 1 coal block using 9 coal
    Crafted 1 minecraft:coal_block

The texts are those of TextCraft, with all refusals. The reward is 1 for crafting the goal, which ends the episode, and
0 before. `info["admissible"]` lists what the commands of the game name and the inventory allows: the environment takes
other actions, too. `info["brief"]` says a result with the inventory after it. `info["state_key"]` is the inventory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.core import BRIEF, Info, Task, TextEnv, UnknownNameError
from envs.textcraft.game import Game, Inventory, Moves
from envs.textcraft.protocols import PROTOCOLS
from envs.textcraft.recipes import words
from envs.textcraft.sources import Source, open_source

ENV_ID = "polyturn/TextCraft-v0"
REFUSED = "refused"  # the brief form of an action that changed nothing


class TextCraftEnv(TextEnv):
    """Plays a game: a goal and the commands that are shown, over a tree of recipes that never changes."""

    def __init__(self, max_turns: int = 40, protocol: str = "plain", render_mode: str | None = None) -> None:
        """`protocol` is one of `envs.textcraft.protocols.PROTOCOLS`. Raises `UnknownNameError` for another one."""
        super().__init__(max_turns, render_mode)
        if protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", protocol, PROTOCOLS)
        self._protocol = PROTOCOLS[protocol]
        self._payload: Mapping[str, Any] = {}
        self._source: Source
        self._game: Game
        self._moves: Moves
        self._inventory: Inventory = {}

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # a task says everything
        if not isinstance(task, Task) or not {"recipes", "goal"} <= set(task.payload):
            raise ValueError(f"{ENV_ID} needs a Task with the payload of TextCraftTasks, got {task!r:.200}")
        self._enter(task.payload)
        self._inventory = {}
        commands = "\n".join(self._commands)
        observation = f"Crafting commands:\n{commands}\n\nGoal: {self._goal_text}."
        return self._protocol.first(observation), self._make_info(f"{commands}\n{self._goal_text}")

    def _enter(self, payload: Mapping[str, Any]) -> None:
        if payload == self._payload:
            return
        self._source = open_source(payload["recipes"], payload.get("order", ""))
        self._game, self._goal = self._source.game, payload["goal"]
        self._commands, self._moves = self._source.commands(payload)
        self._goal_text = f"craft {words(self._goal)}"
        self._payload = payload

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        action, refusal = self._protocol.read(action)
        if refusal:
            return refusal, 0.0, False, self._make_info(REFUSED)
        played = self._game.play(action, self._inventory)
        changed = played.inventory is not self._inventory
        self._inventory = played.inventory
        done = played.crafted == self._goal
        looked = changed or played.text.startswith("Inventory")
        return played.text, float(done), done, self._make_info(None if looked else REFUSED, done)

    def _make_info(self, brief: str | None, done: bool = False) -> Info:
        """`brief` None is the inventory."""
        text, admissible = self._moves.seen(self._inventory)
        return {
            "goal": self._goal_text, "admissible": admissible.copy(), "score": float(done), "success": done,
            "state_key": text, BRIEF: text if brief is None else brief,
        }  # fmt: skip

    @property
    def inventory(self) -> Inventory:
        """Counts by item, in the order in which items came."""
        return self._inventory

    def _save(self) -> Any:
        return self._payload, self._inventory

    def _load(self, saved: Any) -> None:
        payload, self._inventory = saved
        self._enter(payload)
