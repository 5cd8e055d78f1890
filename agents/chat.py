"""Conversations with instruction-tuned models: chat templates, history within a budget, reasoning.

A model's chat template writes a whole conversation as text. Here it is asked once for each piece, with marks in the
places of the answers, and the pieces are put together as ids around the ids that were sampled:

    opening(first message) answer₁ between(second message) answer₂ between(third message) …

so that no answer is ever encoded again. What the environment says is quoted (`agents.quoting`): neither the template
nor the tokenizer takes it for more than text. As long as nothing before has changed, each prompt starts with the last
one and its completion, and an episode is one training sequence. Where history is shortened, or reasoning stripped from
it, the prompt starts otherwise, and the prefix rule (`agents.samples`) begins a new sequence: both are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from agents.episode import ParseStatus, Turn
from agents.parsing import THINK_OPEN, Parser, answer_part, judge
from agents.prompts import DAY, read_template, written
from agents.quoting import encode, plain, quote
from agents.samples import EPISODES, MIXED
from envs.core import Info, UnknownNameError

KINDS = ("full", "last_k", "summary")
SUMMARY_LENGTH = 160  # characters of an observation in a summary
_MARK = "\u2063polyturn\u2063"  # invisible separators: nothing that an environment or a template would write


class ChatTemplateError(ValueError):
    """The model's chat template is missing, fails, or does not keep to what conversations need of it."""


@dataclass(frozen=True)
class History:
    """Which earlier turns a prompt shows.

    "full": all of them. "last_k": the last `turns`. "summary": the last `turns` in full, and one line for each turn
    before them, with the beginning of what was seen and the action. With `max_tokens` the last two drop more turns
    until the prompt fits; a prompt that does not fit even so ends the episode (`context_limit`).
    """

    kind: str = "full"
    turns: int | None = None
    max_tokens: int | None = None  # of a whole prompt

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("history", self.kind, KINDS)
        if (self.kind == "full") != (self.turns is None):
            raise ValueError(f"history {self.kind!r} {'shows all turns' if self.turns else 'needs a number of turns'}")
        if self.turns is not None and self.turns < 0:
            raise ValueError(f"history.turns must be at least 0, got {self.turns}")


class Chat:
    """A `Prompter` (see `agents.prompts`) for models with a chat template."""

    def __init__(
        self,
        system: str,
        parser: Parser,
        history: History,
        keep_reasoning: bool = True,
        admissible: bool = True,
        template_options: dict[str, Any] | None = None,
    ) -> None:
        """`system` names a file of `agents/templates/system`, which sees the parser's request as `answer`.

        `keep_reasoning`: earlier answers are shown with their reasoning; without, from the end of it on. `admissible`:
        the newest message lists the actions that are possible now. `template_options` go to the chat template, for
        example `{"enable_thinking": False}`. Raises `UnknownNameError` with the system prompts that exist.
        """
        template = read_template("system prompt", resources.files("agents") / "templates" / "system", system)
        self.system = template.render(answer=parser.request).strip()
        self.parser, self.history = parser, history
        self.keep_reasoning, self.admissible = keep_reasoning, admissible
        self.template_options = dict(template_options or {})
        self.layout = EPISODES if history.kind == "full" and keep_reasoning else MIXED
        self.max_prompt_tokens = history.max_tokens
        self._prefilled = False  # whether the template opens the reasoning, seen when a prompt is made
        self._encode = lru_cache(maxsize=100_000)(encode)
        self._pieces = lru_cache(maxsize=100_000)(self._make_piece)
        self._answers = lru_cache(maxsize=100_000)(_after_reasoning)

    # -- what the policy sees ---------------------------------------------------------------------------------------
    def prompt_ids(self, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info) -> list[int]:
        """The ids to continue. Raises `ChatTemplateError` where the tokenizer's template is not up to it."""
        newest = self._newest(observation, info)
        self._prefilled = self._pieces(tokenizer, newest, not turns, True).rstrip().endswith(THINK_OPEN)
        if turns and self.history.kind == "full" and self.keep_reasoning:
            before = [*turns[-1].prompt_ids, *turns[-1].completion_ids]
            return self._append(tokenizer, before, newest, as_sampled=True)
        shown = len(turns) if self.history.turns is None else min(self.history.turns, len(turns))
        while True:
            ids = self._conversation(tokenizer, turns[len(turns) - shown :], turns[: len(turns) - shown], newest, info)
            if self.max_prompt_tokens is None or len(ids) <= self.max_prompt_tokens:
                return ids
            if self.history.kind == "full" or shown == 0:
                return ids  # too long: the agent ends the episode
            shown -= 1

    def _conversation(
        self, tokenizer: Any, shown: Sequence[Turn], dropped: Sequence[Turn], newest: str, info: Info
    ) -> list[int]:
        messages = self._said_to(shown, dropped, newest, info)
        ids: list[int] = []
        for turn, message in zip(shown, messages[:-1], strict=True):
            # Answers that are shown with their reasoning follow what the template made them begin with.
            ids = self._append(tokenizer, ids, message, as_sampled=self.keep_reasoning)
            sampled = tuple(turn.completion_ids)
            ids += sampled if self.keep_reasoning else self._answers(tokenizer, sampled, self._prefilled)
        return self._append(tokenizer, ids, messages[-1], as_sampled=True)

    def _append(self, tokenizer: Any, ids: list[int], message: str, *, as_sampled: bool) -> list[int]:
        """`ids` and the piece that brings `message`, which starts the conversation where `ids` is empty."""
        piece = self._encode(tokenizer, self._pieces(tokenizer, message, not ids, as_sampled))
        return [*ids, *(piece[1:] if ids and piece[:1] == (ids[-1],) else piece)]  # its stop token ended the answer

    def messages(
        self, turns: Sequence[Turn], answers: Sequence[str], observation: str, info: Info
    ) -> list[dict[str, str]]:
        """The same conversation for a model behind an endpoint, which has ids of its own; `answers` to each turn."""
        shown = len(turns) if self.history.turns is None else min(self.history.turns, len(turns))
        first = len(turns) - shown
        told = self._said_to(turns[first:], turns[:first], self._newest(observation, info), info)
        conversation = [_system(self.system)]
        for message, answer in zip(told[:-1], answers[first:], strict=True):
            kept = answer if self.keep_reasoning else (answer_part(answer) or "").lstrip()
            conversation += [_user(plain(message)), _answer(kept)]
        return [*conversation, _user(plain(told[-1]))]

    def _said_to(self, shown: Sequence[Turn], dropped: Sequence[Turn], newest: str, info: Info) -> list[str]:
        """The messages to the model, quoted: those of the turns that are shown, and the newest."""
        messages = [*(quote(turn.observation) for turn in shown), newest]
        if dropped:
            messages[0] = self._before(dropped, info["goal"]) + messages[0]
        return messages

    def _newest(self, observation: str, info: Info) -> str:
        if not self.admissible or not info["admissible"]:
            return quote(observation)
        return f"{quote(observation)}\n\nPossible now: {'; '.join(map(quote, info['admissible']))}"

    def _before(self, dropped: Sequence[Turn], goal: str) -> str:
        """What stands in the first message for the turns that are no longer shown."""
        told = [f"Your task: {quote(goal)}"]
        if self.history.kind == "summary":
            told.append("What you did before:")
            lines = ((quote(_shorten(turn.observation)), quote(turn.action)) for turn in dropped)
            told += [f"{n}. {seen} → {action}" for n, (seen, action) in enumerate(lines, start=1)]
        else:
            told.append(f"({len(dropped)} earlier turns are not shown.)")
        return "\n".join(told) + "\n\n"

    def _make_piece(self, tokenizer: Any, message: str, first: bool, as_sampled: bool) -> str:
        """The template's text from the end of one answer (or the start) to the beginning of the next."""
        before = [] if first else [_user(""), _answer(_MARK)]
        after = [] if as_sampled else [_answer(_MARK), _user("")]
        text = self._render(tokenizer, [_system(self.system), *before, _user(message), *after], as_sampled)
        parts = text.split(_MARK)
        if len(parts) != 1 + (not first) + (not as_sampled):
            raise ChatTemplateError(f"{_name(tokenizer)}: the chat template leaves out or changes what was answered")
        return parts[0] if first else parts[1]

    def _render(self, tokenizer: Any, messages: list[dict[str, str]], generate: bool) -> str:
        if not tokenizer.chat_template:
            raise ChatTemplateError(
                f"{_name(tokenizer)} has no chat template: it is no instruction-tuned model. "
                "agent=transcript plays with any model, agent=chat with those that have one"
            )
        options = {
            "tokenize": False, "add_generation_prompt": generate, "strftime_now": DAY.strftime, **self.template_options,
        }  # fmt: skip
        try:
            text: str = tokenizer.apply_chat_template(messages, **options)
        except Exception as error:  # whatever a template raises, and they are programs
            raise ChatTemplateError(f"{_name(tokenizer)}: the chat template fails: {error}") from error
        return text

    # -- what the policy said ---------------------------------------------------------------------------------------
    def parse(self, text: str) -> str | None:
        """The action in a completion's text, after its reasoning; None when there is none."""
        answer = answer_part(text, self._prefilled)
        return None if answer is None else self.parser.parse(answer)

    def action_ids(self, tokenizer: Any, action: str) -> list[int]:
        """The completion that a demonstration of `action` would be, stop token included."""
        return [*self._encode(tokenizer, written(self, action)), tokenizer.eos_token_id]

    def read(self, text: str, finished: bool, info: Info) -> tuple[str, ParseStatus]:
        """See `agents.parsing.judge`."""
        return judge(text, self.parse(text), finished, info)

    def write(self, action: str) -> str:
        """The action in the form that was asked for, without reasoning."""
        return self.parser.write(action)


def _after_reasoning(tokenizer: Any, ids: tuple[int, ...], prefilled: bool) -> tuple[int, ...]:
    """The ids of a completion from the end of its reasoning on, without leading blanks; none where it has no end."""
    whole = tokenizer.decode(ids)
    after = answer_part(whole, prefilled)
    if after == whole:
        return ids
    # The shortest rest that still decodes to the answer: every id before it belongs to the reasoning.
    answer = (after or "").lstrip()
    kept = len(ids)
    while kept and not tokenizer.decode(ids[kept:]).endswith(answer):
        kept -= 1
    return ids[kept:]


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SUMMARY_LENGTH else flat[: SUMMARY_LENGTH - 1] + "…"


def _system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or "the model")
