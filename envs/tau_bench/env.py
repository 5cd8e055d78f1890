"""Help a customer with tools over a database: `polyturn/TauBench-v0`.

    I am Ada Berg, zip code 48210. Return the Mug of order #W1012 to credit_card_104.
    > <tool>{"name": "get_order_details", "arguments": {"order_id": "#W1012"}}</tool>
    <result>{"order_id": "#W1012", "user_id": "ada_berg_1004", …}</result>
    > Shall I return the small mug?
    Yes.

An episode is that of `envs.tools.env`, over the scenario of `envs.tau_bench.scenario`: tools, formats of calls and
`info` are described there. `info["user"]` names the user; `info["signals"]` says at the end whether the database is
right, and which required outputs were said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.core import Info
from envs.partners import Partner
from envs.tau_bench.scenario import Conversation
from envs.tau_bench.users import ScriptedUser
from envs.tools.env import ToolsEnv
from envs.tools.scenario import Scenario
from envs.tools.tool import Limits

ENV_ID = "polyturn/TauBench-v0"
MAX_TURNS = 30  # messages of the agent, as in the reference's agents
LIMITS = Limits(output=100_000)  # the longest result of a reference action is shown whole


class TauBenchEnv(ToolsEnv):
    """Plays a conversation of `TauBenchTasks`."""

    def __init__(
        self,
        format: str = "tags",  # noqa: A002
        max_turns: int = MAX_TURNS,
        user: Partner | None = None,
        oracle: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """`user` None is scripted. With `oracle`, `info["reference"]` has the hidden solution of the task."""
        super().__init__(format, max_turns, LIMITS, render_mode)
        self._user = user or ScriptedUser()
        self._oracle = oracle

    def _scenario_of(self, payload: Mapping[str, Any]) -> Scenario:
        return Conversation(payload, self._user)

    def _about(self, scenario: Scenario) -> Info:
        info = super()._about(scenario) | {"user": self._user.name}
        if self._oracle:
            info["reference"] = {key: self._payload[key] for key in ("actions", "outputs")}
        return info

    @property
    def database_hash(self) -> str:
        """Hex sha256 of the whole database, as the reference computes it. After the end, it is still the agent's."""
        assert isinstance(self._opened, Conversation), "reset opens it"
        return self._opened.database.hash()

    @property
    def reference_hash(self) -> str:
        """The same of the database after the reference actions."""
        assert isinstance(self._opened, Conversation), "reset opens it"
        return self._opened.reference_hash
