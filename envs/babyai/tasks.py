"""The 40 levels of AgentGym's BabyAI, by seed.

tasks = BabyAITasks()                                # all levels
tasks = BabyAITasks(["GoToRedBall", "Pickup"])
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from envs.babyai.env import ENV_ID, INSTALL, MAX_TURNS, BabyAIEnv
from envs.core import UnknownNameError
from envs.seed_tasks import FIRST_SEEDS, SeedTasks

LEVELS = (  # in AgentGym's order
    "GoToRedBallGrey", "GoToRedBall", "GoToRedBallNoDists", "GoToObjS6", "GoToLocalS8N7", "GoToObjMazeS7",
    "GoToImpUnlock", "GoToSeqS5R2", "GoToRedBlueBall", "GoToDoor", "GoToObjDoor", "Open", "OpenRedDoor", "OpenDoorLoc",
    "OpenRedBlueDoorsDebug", "OpenDoorsOrderN4Debug", "Pickup", "UnblockPickup", "PickupLoc", "PickupDistDebug",
    "PickupAbove", "PutNextLocalS6N4", "PutNextS7N4Carrying", "Unlock", "UnlockLocalDist", "KeyInBox",
    "UnlockPickupDist", "BlockedUnlockPickup", "UnlockToUnlock", "ActionObjDoor", "FindObjS7", "KeyCorridorS6R3",
    "OneRoomS20", "MoveTwoAcrossS8N9", "SynthS5R2", "SynthLoc", "SynthSeq", "MiniBossLevel", "BossLevel",
    "BossLevelNoUnlock",
)  # fmt: skip


class BabyAITasks(SeedTasks):
    """Levels in turn: task number n has level n modulo their number, as AgentGym counts.

    With all levels, the tasks of `train` are AgentGym's `data_idx` from 0 on.
    """

    def __init__(
        self,
        levels: Sequence[str] | None = None,
        max_turns: int = MAX_TURNS,
        train_tasks: int = 2000,
        valid_tasks: int = 200,
    ) -> None:
        """`levels` None is all of `LEVELS`. Raises `UnknownNameError`, and `ModuleNotFoundError` without minigrid."""
        for name in levels or ():
            if name not in LEVELS:
                raise UnknownNameError("level of BabyAI", name, LEVELS)
        if levels is not None and not levels:
            raise ValueError("levels is empty, expected names of levels, or null for all of them")
        self._levels = list(levels or LEVELS)
        try:
            self._version = version("minigrid")
        except PackageNotFoundError as error:
            raise ModuleNotFoundError(INSTALL) from error
        super().__init__(ENV_ID, max_turns, train_tasks, valid_tasks)

    def payload(self, split: str, seed: int) -> dict[str, Any]:
        level = self._levels[(seed - FIRST_SEEDS[split]) % len(self._levels)]
        first = FIRST_SEEDS[split]
        return {
            "type": level, "level": f"BabyAI-{level}-v0", "seed": first + (seed - first) // len(self._levels),
            "minigrid": self._version,
        }  # fmt: skip

    def make(self) -> BabyAIEnv:
        """A new environment."""
        return BabyAIEnv(self.max_turns)
