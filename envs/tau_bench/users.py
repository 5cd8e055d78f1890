"""The customer of a conversation: an `envs.partners.Partner`, whose instruction is that of the task."""

from __future__ import annotations

from collections.abc import Sequence

GREETING = "Hi! How can I help you today?"  # of the agent, before the user's first message
STOP = "###STOP###"  # anywhere in a message of the user: the conversation ends


class ScriptedUser:
    """Says the whole instruction at once, agrees to every question, and stops when the agent has none.

    It measures the use of tools alone: nothing has to be asked for. A message of the agent with a question mark is a
    question, unless it asks whether there is anything else.
    """

    name = "scripted"

    def answer(self, instruction: str, said: Sequence[str]) -> str:
        """See `envs.partners.Partner`. `said` begins with the greeting of the agent."""
        if len(said) == 1:
            return instruction
        return "Yes." if "?" in said[-1] and "anything else" not in said[-1].lower() else STOP
