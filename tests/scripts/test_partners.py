"""Conversations in which agent, partner and judge are models behind an endpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agents.episode import read_episodes
from envs.core import StopReason
from envs.sotopia.judge import DIMENSIONS
from tests.agents.endpoint_server import Reply, Server, answered
from tests.scripts.test_commands import Cli, cli  # noqa: F401

RATED = {name: ["because", dimension.high] for name, dimension in DIMENSIONS.items()}


def reply(request: dict[str, Any]) -> Reply:
    """The agent speaks twice and leaves, its partner nods, and the judge gives the best scores."""
    turns = sum(message["role"] == "assistant" for message in request["messages"])
    if request["model"] == "judge":
        return answered(json.dumps({"agent_1": RATED, "agent_2": RATED}))
    if request["model"] == "partner":
        assert request["messages"][0]["content"].startswith("Imagine you are ")
        return answered('{"action_type": "action", "argument": "nods"}')
    return answered("<action>leave</action>" if turns == 2 else "<action>speak[We agree.]</action>")


@pytest.mark.parametrize("workers", [0, 1])
def test_agent_partner_and_judge_behind_one_endpoint(workers: int, cli: Cli) -> None:  # noqa: F811
    server = Server(reply)
    arguments = [
        "env=sotopia", "env.scenarios=embedded", "split=valid", "limit=2", f"pool.workers={workers}", "pool.size=2",
        "agent=openai", "agent.name=agent", f"agent.base_url={server.url}", "env/partner=endpoint",
        "env.partner.name=partner", f"env.partner.base_url={server.url}", "env.partner.max_retries=0",
        "env/judge=endpoint", "env.judge.model.name=judge", f"env.judge.model.base_url={server.url}",
        "hydra.run.dir=run",
    ]  # fmt: skip
    code, out, err = cli("evaluate", *arguments)
    assert code == 0, err
    assert "partner endpoint partner, judge judge" in out
    for episode in read_episodes(cli.folder / "run" / "episodes.jsonl"):
        assert (episode.stop_reason, episode.total_reward, len(episode.turns)) == (StopReason.SUCCESS, 1.0, 3)
        assert "[action] nods" in episode.turns[1].observation
    server.close()
    code, _, err = cli("evaluate", *arguments[:-1], "agent.max_retries=0", "hydra.run.dir=other")
    assert code == 2
    assert "Traceback" not in err
