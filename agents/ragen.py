"""RAGEN's turn protocol: several actions in one answer.

    <think> The box is right of me. </think> <answer> Right || Down </answer>

The first `actions_per_turn` actions of an answer are played one after the other, unless the episode ends before. Their
rewards are added up and shown with the next state. Names are matched in any case, and unknown ones are left out. An
answer that names an unknown action, or no action, counts as invalid (`algo.estimator.invalid_penalty` is its price); an
answer without an action that can be played uses up a turn, and the environment is not asked. The answer is shown again
as it was read: cut to the actions that were kept, and without anything around it.

As in `ragen/llm_agent` of mll-lab-nu/RAGEN @ 20daedc (`es_manager.py`, `ctx_manager.py`, `config/base.yaml`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

from agents.agent import Decision, PolicyAgent, View
from agents.chat_templates import answer_end_id, render_chat
from agents.episode import ParseStatus, Turn
from agents.prompts import read_template, written
from agents.quoting import encode, quote
from agents.samples import TURNS
from envs.core import Info, StopReason

SEPARATOR = " || "
_BETWEEN = re.compile(r"</think>\s*<answer>")
_REMOVED = ("<think>", "</think>", "<answer>", "</answer>", "<|im_start|>", "<|im_end|>")  # from both parts
NOTHING_PLAYED = "No valid action provided previously. Environment state remains the same. Please try again.\n"
FORMAT = (
    "You have {left} actions left. Always output: <think> [Your thoughts] </think> <answer> [your answer] </answer> "
    "with no extra text. Strictly follow this format. Max response length: {words} words (tokens).\n"
)


class Ragen:
    """A `Prompter` (see `agents.prompts`) that shows the whole conversation, with earlier answers as they were read."""

    layout = TURNS
    max_prompt_tokens: int | None = None

    def __init__(
        self, system: str, max_turns: int = 5, max_actions: int = 10, actions_per_turn: int = 2, words: int = 100
    ) -> None:
        """`system` names a file of `agents/templates/ragen`. `words` is the length that answers are asked to keep.

        Raises `UnknownNameError` with the files that exist, and `ValueError` for an impossible limit.
        """
        if min(max_turns, max_actions, actions_per_turn, words) < 1:
            raise ValueError(
                "turns, actions and words must be at least 1, got "
                f"{max_turns=}, {max_actions=}, {actions_per_turn=}, {words=}"
            )
        template = read_template("system prompt", resources.files("agents") / "templates" / "ragen", system)
        self.system = template.render(max_actions=max_actions)
        self.max_turns, self.max_actions = max_turns, max_actions
        self.actions_per_turn, self.words = actions_per_turn, words
        self._encode = lru_cache(maxsize=100_000)(encode)

    # -- what the policy sees -----------------------------------------------------------------------------------------
    def messages(self, turns: Sequence[Turn], answers: Sequence[str], observation: str) -> list[dict[str, str]]:
        """The conversation; `answers` are the texts of the turns. Text from outside is quoted."""
        said = [{"role": "system", "content": self.system}]
        left, before, note = self.max_actions, "", ""
        for number, (turn, answer) in enumerate(zip(turns, answers, strict=True), start=1):
            said += [
                {"role": "user", "content": self._state(number, before, turn.observation, note, left)},
                {"role": "assistant", "content": quote(self.split(answer)[0])},
            ]
            left -= len(split_actions(turn.action))
            before, note = f"Reward:\n{_number(turn.reward)}\n", "" if turn.action else NOTHING_PLAYED
        return [*said, {"role": "user", "content": self._state(len(turns) + 1, before, observation, note, left)}]

    def _state(self, number: int, before: str, observation: str, note: str, left: int) -> str:
        asked = FORMAT.format(left=left, words=self.words)
        return f"{before}\nTurn {number}:\nState:\n{quote(observation)}\n{note}{asked}"

    def prompt_ids(self, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info) -> list[int]:  # noqa: ARG002
        """The conversation through the chat template; without one, its texts one after the other."""
        answers = [tokenizer.decode(_without_end(tokenizer, turn), skip_special_tokens=False) for turn in turns]
        said = self.messages(turns, answers, observation)
        if tokenizer.chat_template:
            return list(self._encode(tokenizer, render_chat(tokenizer, said, add_generation_prompt=True)))
        return list(self._encode(tokenizer, "".join(message["content"] for message in said), around=True))

    # -- what the policy wrote ----------------------------------------------------------------------------------------
    def split(self, text: str) -> tuple[str, list[str]]:
        """An answer as it is shown again, and its actions; an answer in another form stays as it is and has none."""
        _, thinks, rest = text.partition("<think>")
        between = _BETWEEN.search(rest)
        answer, ends, _ = rest[between.end() :].partition("</answer>") if between else ("", "", "")
        if not (thinks and between and ends):
            return text, []
        thought, answer = _bare(rest[: between.start()]), _bare(answer)
        actions = [action.strip() for action in answer.split(SEPARATOR.strip()) if action.strip()]
        if len(actions) > self.actions_per_turn:
            actions = actions[: self.actions_per_turn]
            answer = SEPARATOR.join(actions)
        return f"<think>{thought}</think><answer>{answer}</answer>", actions

    def parse(self, text: str) -> str | None:
        """The actions of an answer, with a separator between them; None if there are none."""
        return SEPARATOR.join(self.split(text)[1]) or None

    def read(self, text: str, finished: bool, info: Info) -> tuple[str, ParseStatus]:
        """The actions that can be played, and whether the answer is valid."""
        actions = self.split(text)[1] if finished else []
        names = info.get("actions") or info["admissible"]
        known = {name.lower(): name for name in names} if names else None
        played = [a if known is None else known[a.lower()] for a in actions if known is None or a.lower() in known]
        if not finished:
            status = ParseStatus.TRUNCATED
        elif not actions:
            status = ParseStatus.MALFORMED
        else:
            status = ParseStatus.OK if len(played) == len(actions) else ParseStatus.ILLEGAL
        return SEPARATOR.join(played), status

    def write(self, action: str) -> str:
        """An answer without a thought."""
        return f"<think></think><answer>{action}</answer>"

    def action_ids(self, tokenizer: Any, action: str) -> list[int]:
        """The completion that demonstrates `action`, including the stop token."""
        return [*self._encode(tokenizer, written(self, action)), answer_end_id(tokenizer)]


@dataclass(eq=False)
class RagenAgent(PolicyAgent):
    """A `PolicyAgent` that plays the actions of an answer one after the other, within the limits of its prompter."""

    prompter: Ragen

    def act(self, views: Sequence[View]) -> list[Decision]:
        """Episodes at their limit of turns or actions end with `turn_limit`."""
        left = [actions_left(self.prompter, view.episode.turns) for view in views]
        decisions = iter(super().act([view for view, count in zip(views, left, strict=True) if count]))
        return [
            played(next(decisions), count) if count else Decision("", None, stop_reason=StopReason.TURN_LIMIT)
            for count in left
        ]

    def repeated(self, turn: Turn, prompt: list[int]) -> Decision:
        return played(super().repeated(turn, prompt), self.prompter.max_actions)


def actions_left(prompter: Ragen, turns: Sequence[Turn]) -> int:
    """How many actions an episode may still play; 0 where its turns are used up."""
    used = sum(len(split_actions(turn.action)) for turn in turns)
    return max(0, prompter.max_actions - used) if len(turns) < prompter.max_turns else 0


def played(decision: Decision, most: int) -> Decision:
    """A decision that plays the actions in its text one after the other, `most` at most."""
    if decision.status is None:
        return decision
    actions = split_actions(decision.action)[:most]
    return replace(decision, action=SEPARATOR.join(actions), actions=tuple(actions))


def split_actions(text: str) -> list[str]:
    """The actions of a turn; none in an empty text."""
    return text.split(SEPARATOR) if text else []


def _bare(text: str) -> str:
    for mark in _REMOVED:
        text = text.replace(mark, "").strip()
    return text


def _without_end(tokenizer: Any, turn: Turn) -> list[int]:
    ids = turn.completion_ids
    return ids[:-1] if ids and ids[-1] in (tokenizer.eos_token_id, answer_end_id(tokenizer)) else ids


def _number(reward: float) -> str:
    """Whole rewards without a point, as RAGEN's sums of whole numbers."""
    return str(int(reward)) if reward == int(reward) else str(reward)
