"""What one episode of a task is made of.

`ToolsEnv` reads the policy's messages, executes their calls and shows the results. Everything else is up to a scenario:
which tools there are, what the user says, and what is graded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.tools.tool import Call, Limits, Result, Tool, execute


@dataclass(frozen=True)
class Reply:
    """What a message of the policy leads to."""

    text: str = ""  # what the policy reads; after calls it follows their results
    done: bool = False  # whether the task ends; a task with the score 1 ends in any case
    reward: float = 0.0
    score: float = 0.0  # in [0, 1]; 1 is a success
    turn_reward: float = 0.0  # `info["turn_reward"]`
    signals: Mapping[str, Any] = field(default_factory=dict)  # facts behind it, added to `info["signals"]`


class Scenario(ABC):
    """One episode. `envs.tools.env` makes it from a task's payload and the limits of a call, and closes it."""

    goal: str = ""  # `info["goal"]`
    instructions: str = ""  # what ends the task; policies that choose from a list see it in the list
    answers: Sequence[str] | None = None  # `info["answers"]`
    least_calls: int | None = None  # the smallest number of calls that is enough, if it is known

    @abstractmethod
    def begin(self) -> str:
        """The first message of the user."""

    @property
    @abstractmethod
    def tools(self) -> Mapping[str, Tool]:
        """The tools by name. They may change between messages: new ones are described with the reply."""

    @property
    def callable_tools(self) -> Mapping[str, Tool]:
        """The tools that calls reach: those of `tools`, unless a benchmark also runs some that it does not show."""
        return self.tools

    def execute(self, call: Call, limits: Limits) -> Result:
        """Run a call of the policy; it never raises."""
        return execute(self.callable_tools, call, limits)

    @abstractmethod
    def reply(self, text: str) -> Reply:
        """The policy wrote a message without calls: a graded answer, or what the user says next."""

    def called(self, calls: Sequence[tuple[Call, Result]]) -> Reply:  # noqa: ARG002
        """The policy wrote a message with these calls, which were executed in order."""
        return Reply()

    def state_key(self) -> str | None:
        """The anchor of the state, see `envs.core`; None is the observation."""
        return None

    def admissible(self) -> list[tuple[str, str]] | None:
        """Pairs of a tool and a text for its argument, to offer to policies that choose from a list; None is no list.

        A text in angle brackets is a slot; the tool "answer" is a message without calls.
        """
        return None

    def save(self) -> Any:
        """The state, as a value that later calls do not change. Raises `NotImplementedError` if that is impossible."""
        raise NotImplementedError(f"{type(self).__name__} cannot take snapshots")

    def load(self, saved: Any) -> None:
        """Continue from `save` of another instance of the same task."""
        raise NotImplementedError(f"{type(self).__name__} cannot restore snapshots")

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """End processes and connections. It may be called twice."""
