"""Text environments for agents. Importing this package registers them with Gymnasium:

    import gymnasium, envs
    env = gymnasium.make("polyturn/ALFWorld-v0")

Other packages add environments through entry points of the group `polyturn.envs`. An entry point names a module, which
registers its environments when it is imported, or a callable, which registers them when it is called. If one fails, a
warning is given and `plugin_errors` keeps its traceback. A folder `conf` beside the module has configurations: with
`conf/env/NAME.yaml` the commands know `env=NAME`.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from importlib import metadata
from pathlib import Path

import gymnasium as gym

PLUGIN_GROUP = "polyturn.envs"
# Gymnasium's own checks are off: they expect numbers, and the environments here keep the contract of `envs.core`.
_BUILT_IN = {
    "polyturn/ALFWorld-v0": "envs.alfworld.env:ALFWorldEnv",
    "polyturn/BabyAI-v0": "envs.babyai.env:BabyAIEnv",
    "polyturn/Bandit-v0": "envs.ragen_games.bandit:BanditEnv",
    "polyturn/Countdown-v0": "envs.ragen_games.countdown:CountdownEnv",
    "polyturn/FrozenLake-v0": "envs.ragen_games.frozen_lake:FrozenLakeEnv",
    "polyturn/GEM-v0": "envs.gem.env:GemEnv",
    "polyturn/KeyCorridor-v0": "envs.key_corridor.env:KeyCorridorEnv",
    "polyturn/MCP-v0": "envs.mcp.env:McpEnv",
    "polyturn/OpenEnv-v0": "envs.openenv.env:OpenEnvEnv",
    "polyturn/ReasoningGym-v0": "envs.reasoning_gym.env:ReasoningGymEnv",
    "polyturn/ScienceWorld-v0": "envs.scienceworld.env:ScienceWorldEnv",
    "polyturn/Search-v0": "envs.search.env:SearchEnv",
    "polyturn/Sokoban-v0": "envs.sokoban.env:SokobanEnv",
    "polyturn/Sotopia-v0": "envs.sotopia.env:SotopiaEnv",
    "polyturn/TauBench-v0": "envs.tau_bench.env:TauBenchEnv",
    "polyturn/TextArena-v0": "envs.textarena.env:TextArenaEnv",
    "polyturn/TextCraft-v0": "envs.textcraft.env:TextCraftEnv",
    "polyturn/TextWorldCooking-v0": "envs.textworld_cooking.env:TextWorldCookingEnv",
    "polyturn/TextWorldExpress-v0": "envs.textworld_express.env:TextWorldExpressEnv",
    "polyturn/Tools-v0": "envs.tools.env:ToolsEnv",
    "polyturn/WebShop-v0": "envs.webshop.env:WebShopEnv",
}

_loaded: set[metadata.EntryPoint] = set()
_errors: dict[metadata.EntryPoint, str] = {}


def plugin_errors() -> list[str]:
    """One text for each entry point that cannot be loaded: its name, its package, its traceback."""
    for point in metadata.entry_points(group=PLUGIN_GROUP):
        if point not in _loaded and point not in _errors and not _being_imported(point.module):
            _load(point)
    return list(_errors.values())


def plugin_configurations() -> dict[str, Path]:
    """The folders with configurations of other packages, each by the name and the version of its package."""
    folders = {}
    for point in _loaded:
        file = getattr(sys.modules.get(point.module), "__file__", None)
        if file and (Path(file).parent / "conf" / "env").is_dir():
            folders[_package(point)] = Path(file).parent / "conf"
    return dict(sorted(folders.items()))


def _package(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _being_imported(module: str) -> bool:
    """Whether that very module is importing this package, so it is not ready yet."""
    return bool(getattr(getattr(sys.modules.get(module), "__spec__", None), "_initializing", False))


def _load(point: metadata.EntryPoint) -> None:
    try:
        target = point.load()
        if callable(target):
            target()
        _loaded.add(point)
    except Exception:
        _errors[point] = (
            f"the entry point {point.name!r} ({point.value}) of {_package(point)} in the group {PLUGIN_GROUP!r} "
            f"cannot be loaded:\n{traceback.format_exc()}"
        )
        warnings.warn(_errors[point], RuntimeWarning, stacklevel=2)


for _id, _entry_point in _BUILT_IN.items():
    gym.register(_id, _entry_point, order_enforce=False, disable_env_checker=True)
plugin_errors()
