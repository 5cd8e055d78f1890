"""Conversations with instruction-tuned models: chat templates, history within a budget, reasoning.

A chat template writes a whole conversation as text. This module renders the template in pieces, with marks in place of
the answers, and joins the pieces' ids with the ids that were sampled:

    opening(first message) answer₁ between(second message) answer₂ between(third message) …

An answer is therefore never encoded again. Templates are programs, so each template is checked once: the joined pieces
must equal what the template writes for whole conversations, with the system prompt once, at the beginning. Where one
rejects, drops or repeats the system prompt, it is put in front of the first user message. Observations are quoted
(`agents.quoting`), so the template and the tokenizer treat them as plain text.

While earlier messages stay the same, each prompt starts with the previous prompt and completion, and an episode is one
training sequence. If history is shortened or reasoning is removed from it, the prefix rule (`agents.samples`) starts a
new sequence. Both are exact.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from agents.chat_templates import (
    FILLER,
    MARK,
    ChatTemplateError,
    answer_end_id,
    append_text,
    model_name,
    render_chat,
)
from agents.episode import ParseStatus, Turn
from agents.parsing import THINK_OPEN, Parser, answer_part, check_action
from agents.prompts import read_template, written
from agents.quoting import encode, plain, quote
from agents.samples import EPISODES, MIXED
from envs.core import Info, UnknownNameError

KINDS = ("full", "last_k", "summary")
SUMMARY_LENGTH = 160  # characters of an observation in a summary
EMPTY = "(empty)"  # stands for an empty message
_CHECKED_TURNS = 8  # turns of the conversations that check a template

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class History:
    """Which earlier turns a prompt shows.

    "full": all of them. "last_k": the last `turns`. "summary": the last `turns` in full, and one line for each earlier
    turn with the beginning of its observation and its action. With `max_tokens`, "last_k" and "summary" drop more turns
    until the prompt fits. If it still does not fit, the episode ends with `context_limit`.
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


class Said(NamedTuple):
    """A message to the model."""

    text: str  # quoted, but for what this module writes
    role: str = "user"
    name: str = ""  # of the tool whose result it is


Message: TypeAlias = tuple[Said, ...]  # what stands between two answers


@dataclass(frozen=True)
class _Form:
    """How the conversations of a template are joined."""

    folded: bool  # the system prompt stands in front of the first user message
    grows: bool  # earlier turns are written as they were when they were new
    lead: str  # text before an answer that the model has to write itself: a blank, or the name of a channel


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
        """`system` names a file of `agents/templates/system`; the file sees the parser's request as `answer`.

        With `keep_reasoning` earlier answers are shown with their reasoning, otherwise without it. `admissible`: the
        newest message lists the possible actions. `template_options` are passed to the chat template, for example
        `{"enable_thinking": False}`. Raises `UnknownNameError` with the system prompts that exist.
        """
        self.settings: dict[str, Any] = {  # those that do not depend on the form of actions
            "system": system, "history": history, "keep_reasoning": keep_reasoning,
            "template_options": template_options,
        }  # fmt: skip
        template = read_template("system prompt", resources.files("agents") / "templates" / "system", system)
        self.system = template.render(answer=parser.request).strip()
        self.parser, self.history = parser, history
        self.keep_reasoning, self.admissible = keep_reasoning, admissible
        self.template_options = dict(template_options or {})
        self.layout = EPISODES if history.kind == "full" and keep_reasoning else MIXED
        self.max_prompt_tokens = history.max_tokens
        # Set when a prompt is made: whether the template opens the reasoning, and what it expects before the answer.
        self._prefilled, self._lead = False, ""
        self._tools = ""  # those that the prompt shows, as JSON; see `agents.tool_chat`
        self._encode = lru_cache(maxsize=100_000)(encode)
        self._pieces = lru_cache(maxsize=100_000)(self._make_piece)
        self._form = lru_cache(maxsize=8)(self._find_form)
        self._answers = lru_cache(maxsize=100_000)(_after_reasoning)

    # -- what the policy sees ---------------------------------------------------------------------------------------
    def prompt_ids(self, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info) -> list[int]:
        """The ids to continue. Raises `ChatTemplateError` if the tokenizer's template cannot be used."""
        newest = self._newest(turns, observation, info)
        self._lead = self._form_of(tokenizer).lead
        self._prefilled = self._text(tokenizer, newest, not turns, True).rstrip().endswith(THINK_OPEN)
        if turns and self._goes_on(tokenizer, turns):
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

    def _goes_on(self, tokenizer: Any, turns: Sequence[Turn]) -> bool:  # noqa: ARG002
        """Whether the prompt is that of the last turn, its answer, and the newest message."""
        return self.history.kind == "full" and self.keep_reasoning and self._form_of(tokenizer).grows

    def _conversation(
        self, tokenizer: Any, shown: Sequence[Turn], dropped: Sequence[Turn], newest: Message, info: Info
    ) -> list[int]:
        messages = self._messages(shown, dropped, newest, info)
        ids: list[int] = []
        for turn, message in zip(shown, messages[:-1], strict=True):
            sampled = tuple(turn.completion_ids)
            kept = sampled if self.keep_reasoning else self._answers(tokenizer, sampled, self._prefilled)
            # Answers shown with their reasoning continue what the template wrote before them. Complete answers of other
            # sources already contain it.
            form = self._form_of(tokenizer)
            as_sampled = form.grows if self.keep_reasoning else bool(form.lead) and kept == sampled
            ids = [*self._append(tokenizer, ids, message, as_sampled=as_sampled), *kept]
        return self._append(tokenizer, ids, messages[-1], as_sampled=True)

    def _append(self, tokenizer: Any, ids: list[int], message: Message, *, as_sampled: bool) -> list[int]:
        """`ids` followed by the piece that contains `message`; with empty `ids` it opens the conversation."""
        text = self._text(tokenizer, message, not ids, as_sampled)
        encode = partial(self._encode, tokenizer)
        return append_text(ids, text, encode) if ids else list(encode(text))

    def messages(
        self, turns: Sequence[Turn], answers: Sequence[Any], observation: str, info: Info
    ) -> list[dict[str, Any]]:
        """The same conversation as messages, for a model behind an endpoint; `answers` are its earlier answers."""
        shown = len(turns) if self.history.turns is None else min(self.history.turns, len(turns))
        first = len(turns) - shown
        messages = self._messages(turns[first:], turns[:first], self._newest(turns, observation, info), info)
        conversation = [_system(self.system)]
        for message, answer in zip(messages[:-1], answers[first:], strict=True):
            kept = answer if self.keep_reasoning else (answer_part(answer) or "").lstrip()
            conversation += [*(_user(_written(plain(said.text))) for said in message), _answer(_written(kept))]
        return [*conversation, *(_user(_written(plain(said.text))) for said in messages[-1])]

    def _messages(self, shown: Sequence[Turn], dropped: Sequence[Turn], newest: Message, info: Info) -> list[Message]:
        """What is said before the answer of each of the shown turns, and the newest."""
        messages = [self._said(before, turn.observation) for before, turn in pairwise([None, *shown]) if turn]
        messages.append(newest)
        if dropped:
            first, *rest = messages[0]
            messages[0] = (Said(self._before(dropped, info["goal"]) + first.text), *rest)
        return messages

    def _newest(self, turns: Sequence[Turn], observation: str, info: Info) -> Message:
        message = self._said(turns[-1] if turns else None, observation)
        if not self.admissible or not info["admissible"]:
            return message
        *before, last = message
        actions = "; ".join(map(quote, info["admissible"]))
        return (*before, last._replace(text=f"{last.text}\n\nPossible now: {actions}"))

    def _said(self, before: Turn | None, observation: str) -> Message:  # noqa: ARG002
        """An observation as messages; `before` is the turn that led to it."""
        return (Said(quote(observation)),)

    def _before(self, dropped: Sequence[Turn], goal: str) -> str:
        """The text in the first message that stands for the turns no longer shown."""
        parts = [f"Your task: {quote(goal)}"]
        if self.history.kind == "summary":
            parts.append("What you did before:")
            lines = ((quote(_shorten(turn.observation)), quote(turn.action)) for turn in dropped)
            parts += [f"{n}. {seen} → {action}" for n, (seen, action) in enumerate(lines, start=1)]
        else:
            parts.append(f"({len(dropped)} earlier turns are not shown.)")
        return "\n".join(parts) + "\n\n"

    def _text(self, tokenizer: Any, message: Message, first: bool, as_sampled: bool) -> str:
        """The template's text between two answers, or before the first one."""
        return self._pieces(tokenizer, message, first, as_sampled, self._tools)

    def _make_piece(self, tokenizer: Any, message: Message, first: bool, as_sampled: bool, tools: str) -> str:  # noqa: ARG002
        return self._piece(tokenizer, message, first, as_sampled, self._form_of(tokenizer).folded)

    def _piece(self, tokenizer: Any, message: Message, first: bool, as_sampled: bool, folded: bool) -> str:
        before = [] if first else [_user(FILLER), _answer(MARK)]
        after = [] if as_sampled else [_answer(MARK), _user(FILLER)]
        parts = self._render(tokenizer, [*before, *as_messages(message), *after], as_sampled, folded)
        return parts[0] if first else parts[1]

    def _render(self, tokenizer: Any, messages: list[dict[str, Any]], generate: bool, folded: bool) -> list[str]:
        """The template's text for the system prompt and these messages, split at the answers."""
        messages = [_system(self.system), *messages]
        options = {"add_generation_prompt": generate, **self.template_options}
        if self._tools:
            options["tools"] = json.loads(self._tools)
        parts = render_chat(tokenizer, fold_system(messages) if folded else messages, **options).split(MARK)
        if len(parts) != 1 + sum(message["content"] == MARK for message in messages):
            raise ChatTemplateError(f"{model_name(tokenizer)}: the chat template leaves out or changes an answer")
        return parts

    def _form_of(self, tokenizer: Any) -> _Form:
        return self._form(tokenizer, self._tools)

    def _find_form(self, tokenizer: Any, tools: str) -> _Form:  # noqa: ARG002
        """Raises `ChatTemplateError` if the template works neither with the system role nor without it."""
        try:
            return self._check_template(tokenizer, folded=False)
        except ChatTemplateError as error:
            form = self._check_template(tokenizer, folded=True)
            logger.warning("%s: put the system prompt in front of the first user message instead", error)
            return form

    def _check_template(self, tokenizer: Any, folded: bool) -> _Form:
        """Raises `ChatTemplateError` unless the joined pieces equal the template's text of whole conversations."""
        name = f"{model_name(tokenizer)}: the chat template"
        filler = (Said(FILLER),)
        start, start_sampled, later, later_sampled = (
            self._piece(tokenizer, filler, first, as_sampled, folded)
            for first in (True, False)
            for as_sampled in (False, True)
        )
        if [piece.count(self.system) for piece in (start, start_sampled, later, later_sampled)] != [1, 1, 0, 0]:
            raise ChatTemplateError(f"{name} does not write the system prompt once, at the beginning")
        for before in range(_CHECKED_TURNS):
            messages = [*[_user(FILLER), _answer(MARK)] * before, _user(FILLER)]
            parts = self._render(tokenizer, messages, True, folded)
            if parts != ([start, *[later] * (before - 1), later_sampled] if before else [start_sampled]):
                raise ChatTemplateError(f"{name} writes turn {before + 1} differently in a longer conversation")
        pairs = [(start, start_sampled), (later, later_sampled)]
        grows = all(shown.startswith(sampled) or _opens_reasoning(shown, sampled) for shown, sampled in pairs)
        if self.keep_reasoning and not grows:
            logger.warning(
                "%s writes the newest message differently from earlier ones: each prompt is written anew, and "
                "each turn is a separate training sequence", name,
            )  # fmt: skip
        return _Form(folded, grows, later.removeprefix(later_sampled) if later.startswith(later_sampled) else "")

    # -- what the policy wrote --------------------------------------------------------------------------------------
    def parse(self, text: str) -> str | None:
        """The action in a completion's text, after its reasoning; None if there is none."""
        answer = answer_part(text.rpartition(self._lead)[2] if self._lead.strip() else text, self._prefilled)
        return None if answer is None else self.parser.parse(answer)

    def action_ids(self, tokenizer: Any, action: str) -> list[int]:
        """The completion that demonstrates `action`, including the stop token."""
        return [
            *self._encode(tokenizer, self._form_of(tokenizer).lead + written(self, action)),
            answer_end_id(tokenizer),
        ]

    def read(self, text: str, finished: bool, info: Info) -> tuple[str, ParseStatus]:
        """See `agents.parsing.check_action`."""
        return check_action(text, self.parse(text), finished, info)

    def write(self, action: str) -> str:
        """The action in the requested form, without reasoning."""
        return self.parser.write(action)


def _after_reasoning(tokenizer: Any, ids: tuple[int, ...], prefilled: bool) -> tuple[int, ...]:
    """The ids of a completion after its reasoning, without leading blanks; empty if the reasoning has no end."""
    whole = tokenizer.decode(ids)
    after = answer_part(whole, prefilled)
    if after == whole:
        return ids
    # The shortest suffix that still decodes to the answer: all ids before it belong to the reasoning.
    answer = (after or "").lstrip()
    kept = len(ids)
    while kept and not tokenizer.decode(ids[kept:]).endswith(answer):
        kept -= 1
    return ids[kept:]


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SUMMARY_LENGTH else flat[: SUMMARY_LENGTH - 1] + "…"


def _opens_reasoning(shown: str, sampled: str) -> bool:
    """Whether a prompt ends as an earlier turn does before its answer, apart from reasoning that it opens."""
    return sampled.startswith(shown) and THINK_OPEN in sampled.removeprefix(shown)


def as_messages(message: Message) -> list[dict[str, Any]]:
    """In the form that chat templates read."""
    return [
        {"role": said.role, "content": said.text}
        | ({"name": said.name, "tool_call_id": call_id(place)} if said.role == "tool" else {})
        for place, said in enumerate(message)
    ]


def call_id(place: int) -> str:
    """The id of a call of an answer: nine letters and digits, as Mistral's templates want them."""
    return f"call{place:05d}"


def fold_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation without a system message: the system prompt is put in front of the first user message."""
    system, first, *rest = messages
    return [_user(f"{system['content']}\n\n{first['content']}"), *rest]


def _written(text: str) -> str:
    """`text`, or a placeholder if it is empty: many servers reject a conversation with an empty message."""
    return text if text.strip() else EMPTY


def _system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
