"""Conversations with instruction-tuned models: chat templates, history within a budget, reasoning.

A model's chat template writes a whole conversation as text. Here it is asked once for each piece, with marks in the
places of the answers, and the pieces are put together as ids around the ids that were sampled:

    opening(first message) answer₁ between(second message) answer₂ between(third message) …

so that no answer is ever encoded again. Templates are programs, so this is checked once for each: the pieces have to be
what the template makes of whole conversations, with the system prompt in them once, at the beginning. Where a template
refuses the system role, drops it, or repeats it elsewhere, the system prompt stands in front of the first user message.
What the environment says is quoted (`agents.quoting`): neither the template
nor the tokenizer takes it for more than text. As long as nothing before has changed, each prompt starts with the last
one and its completion, and an episode is one training sequence. Where history is shortened, or reasoning stripped from
it, the prompt starts otherwise, and the prefix rule (`agents.samples`) begins a new sequence: both are exact.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from agents.chat_templates import FILLER, MARK, ChatTemplateError, answer_end_id, model_name, render_chat
from agents.episode import ParseStatus, Turn
from agents.parsing import THINK_OPEN, Parser, answer_part, judge
from agents.prompts import read_template, written
from agents.quoting import encode, plain, quote
from agents.samples import EPISODES, MIXED
from envs.core import Info, UnknownNameError

KINDS = ("full", "last_k", "summary")
SUMMARY_LENGTH = 160  # characters of an observation in a summary
EMPTY = "(empty)"  # a message of nothing
_CHECKED_TURNS = 8  # of the conversations by which a template is checked

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class _Form:
    """How the conversations of a template are put together."""

    folded: bool  # the system prompt stands in front of the first user message
    grows: bool  # an earlier turn is written as it was when it was the newest
    lead: str  # what stands before an answer and is left to the model to write: a blank, or the name of a channel


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
        # Seen when a prompt is made: whether the template opens the reasoning, and what it leaves to write before it.
        self._prefilled, self._lead = False, ""
        self._encode = lru_cache(maxsize=100_000)(encode)
        self._pieces = lru_cache(maxsize=100_000)(self._make_piece)
        self._form = lru_cache(maxsize=8)(self._find_form)
        self._answers = lru_cache(maxsize=100_000)(_after_reasoning)

    # -- what the policy sees ---------------------------------------------------------------------------------------
    def prompt_ids(self, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info) -> list[int]:
        """The ids to continue. Raises `ChatTemplateError` where the tokenizer's template is not up to it."""
        newest = self._newest(observation, info)
        self._lead = self._form(tokenizer).lead
        self._prefilled = self._pieces(tokenizer, newest, not turns, True).rstrip().endswith(THINK_OPEN)
        if turns and self.history.kind == "full" and self.keep_reasoning and self._form(tokenizer).grows:
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
            sampled = tuple(turn.completion_ids)
            kept = sampled if self.keep_reasoning else self._answers(tokenizer, sampled, self._prefilled)
            # Answers that are shown with their reasoning follow what the template made them begin with; others that are
            # whole bring what the template leaves to them.
            form = self._form(tokenizer)
            as_sampled = form.grows if self.keep_reasoning else bool(form.lead) and kept == sampled
            ids = [*self._append(tokenizer, ids, message, as_sampled=as_sampled), *kept]
        return self._append(tokenizer, ids, messages[-1], as_sampled=True)

    def _append(self, tokenizer: Any, ids: list[int], message: str, *, as_sampled: bool) -> list[int]:
        """`ids` and the piece that brings `message`, which starts the conversation where `ids` is empty."""
        text = self._pieces(tokenizer, message, not ids, as_sampled)
        if ids:
            # Where the stop token that the template writes has ended the answer, it is there, without blanks before it.
            rest = self._encode(tokenizer, text.lstrip())
            if rest[:1] == (ids[-1],):
                return [*ids, *rest[1:]]
        return [*ids, *self._encode(tokenizer, text)]

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
            conversation += [_user(_written(plain(message))), _answer(_written(kept))]
        return [*conversation, _user(_written(plain(told[-1])))]

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
        return self._piece(tokenizer, message, first, as_sampled, self._form(tokenizer).folded)

    def _piece(self, tokenizer: Any, message: str, first: bool, as_sampled: bool, folded: bool) -> str:
        before = [] if first else [_user(FILLER), _answer(MARK)]
        after = [] if as_sampled else [_answer(MARK), _user(FILLER)]
        parts = self._render(tokenizer, [*before, _user(message), *after], as_sampled, folded)
        return parts[0] if first else parts[1]

    def _render(self, tokenizer: Any, messages: list[dict[str, str]], generate: bool, folded: bool) -> list[str]:
        """The template's text for the system prompt and these messages, in parts between the answers."""
        messages = [_system(self.system), *messages]
        options = {"add_generation_prompt": generate, **self.template_options}
        parts = render_chat(tokenizer, fold_system(messages) if folded else messages, **options).split(MARK)
        if len(parts) != 1 + sum(message["role"] == "assistant" for message in messages):
            raise ChatTemplateError(
                f"{model_name(tokenizer)}: the chat template leaves out or changes what was answered"
            )
        return parts

    def _find_form(self, tokenizer: Any) -> _Form:
        """Raises `ChatTemplateError` where the template serves neither with the system role nor without."""
        try:
            return self._check_template(tokenizer, folded=False)
        except ChatTemplateError as error:
            form = self._check_template(tokenizer, folded=True)
            logger.warning("%s: the system prompt stands in front of the first user message", error)
            return form

    def _check_template(self, tokenizer: Any, folded: bool) -> _Form:
        """Raises `ChatTemplateError` unless the pieces, put together, are what the template makes of conversations."""
        name = f"{model_name(tokenizer)}: the chat template"
        start, start_sampled, later, later_sampled = (
            self._piece(tokenizer, FILLER, first, as_sampled, folded)
            for first in (True, False)
            for as_sampled in (False, True)
        )
        if [piece.count(self.system) for piece in (start, start_sampled, later, later_sampled)] != [1, 1, 0, 0]:
            raise ChatTemplateError(f"{name} does not write the system prompt once, at the beginning")
        for before in range(_CHECKED_TURNS):
            messages = [*[_user(FILLER), _answer(MARK)] * before, _user(FILLER)]
            parts = self._render(tokenizer, messages, True, folded)
            if parts != ([start, *[later] * (before - 1), later_sampled] if before else [start_sampled]):
                raise ChatTemplateError(
                    f"{name} writes turn {before + 1} otherwise than those of shorter conversations"
                )
        pairs = [(start, start_sampled), (later, later_sampled)]
        grows = all(shown.startswith(sampled) or _opens_reasoning(shown, sampled) for shown, sampled in pairs)
        if self.keep_reasoning and not grows:
            logger.warning(
                "%s writes the newest message otherwise than earlier ones: each prompt is written anew, and a training "
                "sequence of its own", name,
            )  # fmt: skip
        return _Form(folded, grows, later.removeprefix(later_sampled) if later.startswith(later_sampled) else "")

    # -- what the policy said ---------------------------------------------------------------------------------------
    def parse(self, text: str) -> str | None:
        """The action in a completion's text, after its reasoning; None when there is none."""
        answer = answer_part(text.rpartition(self._lead)[2] if self._lead.strip() else text, self._prefilled)
        return None if answer is None else self.parser.parse(answer)

    def action_ids(self, tokenizer: Any, action: str) -> list[int]:
        """The completion that a demonstration of `action` would be, stop token included."""
        return [*self._encode(tokenizer, self._form(tokenizer).lead + written(self, action)), answer_end_id(tokenizer)]

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


def _opens_reasoning(shown: str, sampled: str) -> bool:
    """Whether a prompt ends as an earlier turn does where its answer begins, but for reasoning that it opens."""
    return sampled.startswith(shown) and THINK_OPEN in sampled.removeprefix(shown)


def fold_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """A conversation whose first message is the system prompt, with that in front of the first user message."""
    system, first, *rest = messages
    return [_user(f"{system['content']}\n\n{first['content']}"), *rest]


def _written(text: str) -> str:
    """`text`, or what says that there is none: many servers refuse a conversation with an empty message."""
    return text if text.strip() else EMPTY


def _system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
