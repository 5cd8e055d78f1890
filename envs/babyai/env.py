"""Find, carry and open things in rooms: `polyturn/BabyAI-v0`.

    Your goal: go to the red ball
    In front of you in this room, you can see several objects: There is a grey key 1 1 steps in front of you and …
    Available actions: ["turn left", "turn right", "move forward", "pickup grey key 1", …]
    > go to red ball 1

The worlds are minigrid's levels of BabyAI, the words and actions those of AgentGym. The reward is minigrid's: 1 less
0.9 times the share of its moves that were used. As in AgentGym, a level that is solved late, with at most 0.5, goes on.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

from envs.babyai.words import CHECK, Scene, describe, listed
from envs.core import BRIEF, Info, Task
from envs.replayed import ReplayedEnv

ENV_ID = "polyturn/BabyAI-v0"
MAX_TURNS = 20  # rounds in AgentGym-RL
UNCHANGED = "No change in state."
UNKNOWN = "The action is not recognized. Please check valid actions."
COMPLETED = "\n The task is completed."
LEAST_REWARD = 0.5  # that ends an episode is more than this
INSTALL = "env=babyai needs the package minigrid: pip install 'polyturn[babyai]'"


def make_world(level: str) -> Any:
    """A level of minigrid. Raises `ModuleNotFoundError`, which says what to install."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pygame greets
            import gymnasium
            import minigrid
            from minigrid.envs.babyai.core import roomgrid_level
    except ImportError as error:
        raise ModuleNotFoundError(f"{INSTALL} ({error})") from error
    if level not in gymnasium.registry:
        minigrid.register_minigrid_envs()
    vars(roomgrid_level)["print"] = lambda *_: None  # it tells of every room that it draws again
    return gymnasium.make(level, disable_env_checker=True).unwrapped


class BabyAIEnv(ReplayedEnv):
    """Plays a level with a seed."""

    def __init__(self, max_turns: int = MAX_TURNS, render_mode: str | None = None) -> None:
        super().__init__(max_turns, render_mode)
        self._level = ""
        self._world: Any = None
        self._scene = Scene("", {})
        self._image: Any = None
        self._goal = ""
        self._reward = 0.0
        self._is_over = False

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # a task says everything
        if not isinstance(task, Task) or not {"level", "seed"} <= set(task.payload):
            raise ValueError(f"{ENV_ID} needs a Task with the payload of BabyAITasks, got {task!r:.200}")
        self._start(task.payload)
        text = f"Your goal: {self._goal}\n{self._scene.text}"
        return self._with_actions(text), self._make_info(0.0) | {BRIEF: text}

    def _enter(self, payload: Any) -> None:
        if self._level != payload["level"]:
            self._world, self._level = make_world(payload["level"]), payload["level"]
        seen, _ = self._world.reset(seed=payload["seed"])
        self._reward, self._is_over = 0.0, False
        self._goal = self._world.mission.replace("then", "and").replace("after you", "and")
        self._scene, self._image = describe(self._world, seen), seen["image"]

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        text, reward = self._do(action)
        return self._with_actions(text), reward, self._is_over, self._make_info(reward) | {BRIEF: text}

    def _play(self, action: str) -> tuple[str, float]:
        """Returns the answer without the available actions, and the reward of this action."""
        name = action.lower().strip()
        if "check" in name:
            return "You can take the following actions: " + ", ".join(self._scene.moves), 0.0
        if name not in self._scene.moves:
            return (self._scene.refusals.get(name, UNKNOWN) if name else UNCHANGED), 0.0
        if not self._scene.moves[name]:
            return UNCHANGED, 0.0
        seen: dict[str, Any] = {}
        reward, is_solved = 0.0, False
        for move in self._scene.moves[name]:
            seen, reward, is_solved, _, _ = self._world.step(move)
            if (seen["image"] == self._image).all():
                break
            self._image = seen["image"]
        self._image = seen["image"]
        self._scene = describe(self._world, seen)
        self._reward = float(reward)
        self._is_over = bool(is_solved) and self._reward > LEAST_REWARD
        return self._scene.text + (COMPLETED if is_solved else ""), self._reward

    def _with_actions(self, text: str) -> str:
        return f"{text}\n{listed(self._scene.moves)}"

    def _make_info(self, reward: float) -> Info:
        return {
            "goal": self._goal, "admissible": [action for action in self._scene.moves if action != CHECK],
            "score": float(self._is_over), "success": self._is_over, "state_key": self._state_key(),
            "minigrid_reward": reward,
        }  # fmt: skip

    def _state_key(self) -> str:
        world = self._world
        held = world.carrying.encode() if world.carrying else ()
        return f"{[int(x) for x in world.agent_pos]} {world.agent_dir} {held} {world.grid.encode().tobytes().hex()}"

    @property
    def last_reward(self) -> float:
        """The reward of the last action that moved something, which AgentGym gives again until the next one."""
        return self._reward
