"""The customer of a conversation.

A user is a function of the task's instruction and of what was said, so an episode can be continued from any turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

GREETING = "Hi! How can I help you today?"  # of the agent, before the user's first message
STOP = "###STOP###"  # anywhere in a message of the user: the conversation ends


class User(Protocol):
    """Anybody who follows an instruction."""

    name: str  # of the setting, in manifests and in `info["user"]`

    def answer(self, instruction: str, said: Sequence[str]) -> str:
        """The next message. `said` is the conversation: the agent's greeting, then user and agent in turn."""


class ScriptedUser:
    """Says the whole instruction at once, agrees to every question, and stops when the agent has none.

    It measures the use of tools alone: nothing has to be asked for. A message of the agent with a question mark is a
    question, unless it asks whether there is anything else.
    """

    name = "scripted"

    def answer(self, instruction: str, said: Sequence[str]) -> str:
        """See `User`."""
        if len(said) == 1:
            return instruction
        return "Yes." if "?" in said[-1] and "anything else" not in said[-1].lower() else STOP
