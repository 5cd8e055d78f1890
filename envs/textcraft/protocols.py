"""How policies write actions.

- `plain`: the text is the action.
- `agentgym`: the prompt of AgentGym, and its reading of answers, for `agent=verbatim agent.prompter.messages=true`. The
  action follows `Action:`; letters, digits, commas and spaces of it are kept. Two actions in an answer are refused.
  (AgentGym also puts "OK. I'll follow your instructions and try my best to solve the task." between its instruction
  and the first observation, as if the model had said it; here both are one message.)
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from importlib import resources

# `TextCraftEnvClient.step` of WooooDyy/AgentGym
TWO_ACTIONS = "Error: Only one 'Action' is allowed per response. Please adjust your response."


class Protocol(ABC):
    """Writes the first observation and reads actions."""

    @abstractmethod
    def first(self, observation: str) -> str:
        """The first observation with what a policy needs to know."""

    @abstractmethod
    def read(self, text: str) -> tuple[str, str]:
        """The action in a policy's text, and what is said instead of playing it ("": it is played)."""


class Plain(Protocol):
    """See the module."""

    def first(self, observation: str) -> str:
        return observation

    def read(self, text: str) -> tuple[str, str]:
        return text, ""


class AgentGym(Protocol):
    """See the module."""

    def first(self, observation: str) -> str:
        instruction = resources.files("envs.textcraft").joinpath("agentgym.txt").read_text(encoding="utf-8")
        return instruction + observation

    def read(self, text: str) -> tuple[str, str]:
        found = re.findall(r"Action:\s*(.*?)(?=\n|$)", text, re.DOTALL)
        if len(found) > 1:
            return "", TWO_ACTIONS
        action = re.sub(r"[^A-Za-z0-9, ]+", "", found[0] if found else "")
        return " ".join(action.split()), ""


PROTOCOLS: dict[str, Protocol] = {"plain": Plain(), "agentgym": AgentGym()}
