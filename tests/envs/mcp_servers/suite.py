"""Environments of the suite as a server, without Hydra: `python -m tests.envs.mcp_servers.suite NAME [--http PORT]`."""

import argparse
import os
import time
from typing import Any

import uvicorn

from envs.alfworld.tasks import ALFWorldTasks
from envs.core import Info, TaskSet, TextEnv
from envs.key_corridor.env import KeyCorridorTasks
from envs.mcp.server import ServerLimits, http_app, serve_stdio
from envs.search.tasks import SearchTasks
from envs.seed_tasks import SeedTasks


class FailingEnv(TextEnv):
    """Does what the action names."""

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        return f"seed {seed}", {"answers": ["the right answer"], "object": object()}

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        match action:
            case "raise":
                raise RuntimeError("out of order")
            case "hang":
                time.sleep(3600)
            case "print":
                print("this is no message")  # noqa: T201
            case "exit":
                os._exit(7)
        return "fine", 0.0, False, {}


class FailingTasks(SeedTasks):
    def __init__(self) -> None:
        super().__init__("tests/Failing-v0", 5, 3, 2)

    def make(self) -> FailingEnv:
        return FailingEnv(5)


def task_set(name: str) -> TaskSet:
    match name:
        case "key_corridor":
            return KeyCorridorTasks(max_turns=12, train_tasks=20, valid_tasks=5)
        case "alfworld":
            return ALFWorldTasks("embedded", embedded_train=2, embedded_valid_seen=2, embedded_valid_unseen=2)
        case "search":
            return SearchTasks(embedded_people=24, train_tasks=20, valid_tasks=5)
    return FailingTasks()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--http", type=int)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--idle", type=float, default=600.0)
    parser.add_argument("--step", type=float, default=60.0)
    args = parser.parse_args()
    limits = ServerLimits(args.sessions, args.idle, args.step)
    if args.http is None:
        serve_stdio(task_set(args.name), limits)
    else:
        app = http_app(task_set(args.name), limits, "127.0.0.1")
        uvicorn.run(app, host="127.0.0.1", port=args.http, log_level="critical")
