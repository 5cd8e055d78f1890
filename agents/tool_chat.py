"""Native tool calls: the chat template writes the tools, the calls of answers, and their results.

For environments that put tools into `info["tools"]` and read calls as JSON, as `env=tools env.format=native` does. With
this prompter the template gets `tools=`, results of calls are messages of the role "tool", and everything else is a
message of the user. An answer is kept as the ids that were sampled, its calls included, and is never encoded again. The
form of calls is found by writing one with the template: any form works whose calls are JSON objects with a name and
arguments, as `<tool_call>{"name": …, "arguments": …}</tool_call>` (Qwen, Hermes), bare objects (Llama 3) or a list
after a mark (Mistral).

The action of an answer with calls is a JSON list of them; a call that cannot be read is in it as text, and the
environment says what is wrong. The action of any other answer is its text. If the tools change, the conversation is
written anew with the new ones, and a new training sequence starts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from agents.chat import Chat, History, Message, Said, as_messages, call_id
from agents.chat_templates import FILLER, MARK, ChatTemplateError, answer_end_id, model_name
from agents.episode import ParseStatus, Turn
from agents.parsing import Whole, answer_part
from agents.quoting import has_marks, plain, quote
from envs.core import Info

MOST_CALLS = 100  # that are read in an answer; environments make fewer
_BLANKS, _BETWEEN = re.compile(r"\s*"), re.compile(r"\s*[;,]*\s*")  # before a value, and between two
_DECODER = json.JSONDecoder()
_PROBE = {"name": "probe_tool", "arguments": {"probe_argument": "probe value"}}


@dataclass(frozen=True)
class Syntax:
    """How a template writes calls."""

    mark: str  # before each call or list of calls; "" where an answer with calls begins with one
    closing: str  # after it
    name: str  # key of the name
    arguments: str  # key of the arguments


class ToolChat(Chat):
    """A `Chat` with native tool calls."""

    def __init__(
        self,
        system: str,
        history: History,
        keep_reasoning: bool = True,
        template_options: dict[str, Any] | None = None,
    ) -> None:
        """See `agents.chat.Chat`."""
        super().__init__(system, Whole(), history, keep_reasoning, False, template_options)
        self._syntax_of = lru_cache(maxsize=8)(self._find_syntax)
        self._syntax: Syntax | None = None  # that of the last prompt's template; None behind an endpoint

    # -- what the policy sees ---------------------------------------------------------------------------------------
    def prompt_ids(self, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info) -> list[int]:
        """The ids to continue. Raises `ChatTemplateError` if the tokenizer's template cannot be used with tools."""
        self._tools = json.dumps(_guarded(tokenizer, tools_of(info)), ensure_ascii=False)
        self._syntax = self._syntax_of(tokenizer, self._tools)
        return super().prompt_ids(tokenizer, turns, observation, info)

    def _goes_on(self, tokenizer: Any, turns: Sequence[Turn]) -> bool:
        if not super()._goes_on(tokenizer, turns):
            return False
        opening = self._append(tokenizer, [], self._said(None, turns[0].observation), as_sampled=True)
        return turns[-1].prompt_ids[: len(opening)] == opening  # with the same tools

    def _said(self, before: Turn | None, observation: str) -> Message:
        if before is None or not has_calls(before.action):
            return super()._said(before, observation)
        results, rest = read_results(observation)
        said = [Said(quote(text), "tool", quote(name)) for name, text in results]
        return (*said, Said(quote(rest))) if rest or not said else tuple(said)

    def messages(
        self, turns: Sequence[Turn], answers: Sequence[Any], observation: str, info: Info
    ) -> list[dict[str, Any]]:
        """The conversation for an endpoint; `answers` are messages with `content` and `tool_calls`."""
        shown = len(turns) if self.history.turns is None else min(self.history.turns, len(turns))
        first = len(turns) - shown
        said = self._messages(turns[first:], turns[:first], self._newest(turns, observation, info), info)
        if not shown and turns:
            said = [(Said(said[-1][0].text + "".join(f"\n{one.text}" for one in said[-1][1:])),)]
        conversation: list[dict[str, Any]] = [{"role": "system", "content": self.system}]
        calls: list[dict[str, Any]] = []
        for place, message in enumerate(said):
            conversation += _answered(message, calls)
            if place < shown:
                answer = answers[first + place]
                calls = answer.get("tool_calls") or []
                conversation.append(answer)
        return conversation

    # -- templates --------------------------------------------------------------------------------------------------
    def _check_template(self, tokenizer: Any, folded: bool) -> Any:
        """Also that results of tools are pieces of their own, and that the tools are shown."""
        form = super()._check_template(tokenizer, folded)
        name = f"{model_name(tokenizer)}: the chat template"
        user, tool = (Said(FILLER),), (Said(FILLER, "tool", FILLER),)
        start = self._piece(tokenizer, user, True, False, folded)
        later, newest = (self._piece(tokenizer, tool, False, as_sampled, folded) for as_sampled in (False, True))
        answer = {"role": "assistant", "content": MARK}
        results = as_messages(tool)
        for count in (1, 2, 3):
            conversation = [{"role": "user", "content": FILLER}, answer, *[*results, answer] * (count - 1), *results]
            parts = self._render(tokenizer, conversation, True, folded)
            if parts != [start, *[later] * (count - 1), newest]:
                raise ChatTemplateError(f"{name} writes a tool's result differently in a longer conversation")
        if FILLER not in newest:
            raise ChatTemplateError(f"{name} leaves out the results of tools")
        for tool_name in (schema["function"]["name"] for schema in json.loads(self._tools)):
            if tool_name not in start:
                raise ChatTemplateError(f"{name} does not show the tool {plain(tool_name)!r}: it may know no tools")
        return form

    def _calling(self, tokenizer: Any, calls: Sequence[Mapping[str, Any]]) -> str:
        """What stands in place of an answer's text if the answer has these calls."""
        folded = self._form_of(tokenizer).folded
        asked, answer = {"role": "user", "content": FILLER}, {"role": "assistant", "content": MARK}
        head, tail = self._render(tokenizer, [asked, answer], False, folded)
        made = [{"type": "function", "id": call_id(i), "function": dict(call)} for i, call in enumerate(calls)]
        calling = {"role": "assistant", "content": "", "tool_calls": made}
        [text] = self._render(tokenizer, [asked, calling], False, folded)
        if not text.startswith(head) or not text.endswith(tail):
            raise ChatTemplateError(f"{model_name(tokenizer)}: the chat template writes calls outside of an answer")
        return text[len(head) : len(text) - len(tail)]

    def _find_syntax(self, tokenizer: Any, tools: str) -> Syntax:  # noqa: ARG002
        text = self._calling(tokenizer, [_PROBE])
        for start, value, end in _values(text):
            name = next((key for key, part in value.items() if part == _PROBE["name"]), None)
            arguments = next((key for key, part in value.items() if part == _PROBE["arguments"]), None)
            if name and arguments:
                return Syntax(text[:start].strip().removesuffix("[").strip(), text[end:].strip(), name, arguments)
        raise ChatTemplateError(
            f"{model_name(tokenizer)}: the chat template writes calls in a form that is not known: {text!r:.200}; "
            "env.format=tags and env.format=json work with any template"
        )

    # -- what the policy wrote --------------------------------------------------------------------------------------
    def parse(self, text: str) -> str | None:
        """The calls as a JSON list, or the text after its reasoning; None if the reasoning has no end."""
        answer = answer_part(text.rpartition(self._lead)[2] if self._lead.strip() else text, self._prefilled)
        if answer is None or self._syntax is None:
            return None if answer is None else answer.strip()
        calls = read_calls(answer, self._syntax)
        return written_calls(calls) if calls else answer.strip()

    def read(self, text: str, finished: bool, info: Info) -> tuple[str, ParseStatus]:  # noqa: ARG002
        """The action, and whether all of its calls can be read."""
        action = self.parse(text)
        if not finished:
            return text if action is None else action, ParseStatus.TRUNCATED
        if action is None or (has_calls(action) and any(isinstance(call, str) for call in json.loads(action))):
            return text if action is None else action, ParseStatus.MALFORMED
        return action, ParseStatus.OK

    def read_message(self, text: str, calls: Sequence[Any], finished: bool, info: Info) -> tuple[str, ParseStatus]:
        """The same for an answer of an endpoint, whose calls are read by its server."""
        return self.read(written_calls(calls) if calls else text, finished, info)

    def action_ids(self, tokenizer: Any, action: str) -> list[int]:
        """The completion that demonstrates `action`: the template's text of its calls, or its own text."""
        text = quote(action)
        if has_calls(action):
            text = self._calling(tokenizer, _guarded(tokenizer, json.loads(action)))
        return [*self._encode(tokenizer, self._form_of(tokenizer).lead + text), answer_end_id(tokenizer)]


def with_calls(chat: Chat, form: str) -> Chat:
    """The prompter that speaks a format of `envs.tools.calls`; "brackets" is read as any action is."""
    if form == "native":
        return ToolChat(**chat.settings)
    return Chat(**chat.settings, parser=Whole(), admissible=chat.admissible) if form in ("tags", "json") else chat


# -- calls and results ------------------------------------------------------------------------------------------------
def tools_of(info: Info) -> list[dict[str, Any]]:
    """The schemas of an environment's tools. Raises `ValueError` if there are none."""
    if not info.get("tools"):
        raise ValueError("native tool calls need an environment with info['tools'], as env=tools env.format=native has")
    return list(info["tools"])


def written_calls(calls: Sequence[Any]) -> str:
    """The action with these calls."""
    return json.dumps(list(calls), ensure_ascii=False)


def has_calls(action: str) -> bool:
    """Whether an action is a list of calls."""
    return action.startswith("[") and _is_list(action)


@lru_cache(maxsize=10_000)
def _is_list(action: str) -> bool:
    try:
        return isinstance(json.loads(action), list)
    except (ValueError, RecursionError):
        return False


def read_results(observation: str) -> tuple[list[tuple[str, str]], str]:
    """The results at the beginning of an observation, as names and texts, and the text behind them."""
    try:
        found, end = json.JSONDecoder().raw_decode(observation)
        results = [(str(one["name"]), str(one.get("result", one.get("error")))) for one in found]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return [], observation
    return results, observation[end:].strip()


def read_calls(text: str, syntax: Syntax) -> list[Any]:
    """The calls in an answer; those that cannot be read are texts. Those after `MOST_CALLS` are left out."""
    if not syntax.mark:
        stripped = text.strip()
        return _read_part(stripped, syntax) if stripped.startswith(("{", "[")) else []
    calls: list[Any] = []
    place = text.find(syntax.mark)
    while place >= 0 and len(calls) < MOST_CALLS:
        start = place + len(syntax.mark)
        value, end = _decode(text, start)
        if value is None:
            next_mark = text.find(syntax.mark, start)
            part = text[start:] if next_mark < 0 else text[start:next_mark]
            part = part.partition(syntax.closing)[0] if syntax.closing else part
            calls.append(part.strip())
            end = start + len(part)
        else:
            calls += [_call(one, syntax) for one in (value if isinstance(value, list) else [value])]
        place = text.find(syntax.mark, end)
    return calls


def _read_part(text: str, syntax: Syntax) -> list[Any]:
    """Values one after the other, as Llama writes several calls."""
    calls: list[Any] = []
    place = 0
    while place < len(text) and len(calls) < MOST_CALLS:
        value, end = _decode(text, place)
        if value is None:
            return [*calls, text[place:]] if calls or end == place else calls
        calls += [_call(one, syntax) for one in (value if isinstance(value, list) else [value])]
        place = _span(_BETWEEN, text, end)
    return calls


def _call(value: Any, syntax: Syntax) -> Any:
    """With the usual keys; anything else as it is."""
    if not isinstance(value, dict) or syntax.name not in value or syntax.arguments not in value:
        return value
    other = {key: part for key, part in value.items() if key not in (syntax.name, syntax.arguments)}
    return {"name": value[syntax.name], "arguments": value[syntax.arguments], **other}


def _decode(text: str, place: int) -> tuple[Any, int]:
    """The JSON value at a place of a text and its end; None and the place if there is none."""
    try:
        return _DECODER.raw_decode(text, _span(_BLANKS, text, place))
    except (ValueError, RecursionError):
        return None, place


def _span(pattern: re.Pattern[str], text: str, place: int) -> int:
    """The end of what a pattern that fits anywhere finds at a place."""
    found = pattern.match(text, place)
    return found.end() if found else place


def _values(text: str) -> Iterator[tuple[int, dict[str, Any], int]]:
    """The JSON objects in a text, with their places."""
    start = text.find("{")
    while start >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
            yield start, value, end
        except ValueError:
            pass
        start = text.find("{", start + 1)


def _answered(message: Message, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A message for an endpoint. Every call gets a result, and every result is that of a call."""
    results = [said for said in message if said.role == "tool"]
    told = [plain(said.text) for said in message if said.role != "tool"]
    answered = []
    for place, call in enumerate(calls):
        text = plain(results[min(place, len(results) - 1)].text) if results else "Error: no result"
        answered.append({"role": "tool", "tool_call_id": call["id"], "content": text})
    if not calls:
        told = [plain(said.text) for said in results] + told
    return [*answered, *({"role": "user", "content": text or "(empty)"} for text in told)]


def _guarded(tokenizer: Any, value: Any) -> Any:
    """With quotes in each text that has a control token; other texts stay as they are, for templates compare some."""
    if isinstance(value, str):
        return quote(value) if has_marks(tokenizer, value) else value
    if isinstance(value, Mapping):
        return {_guarded(tokenizer, key): _guarded(tokenizer, part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_guarded(tokenizer, part) for part in value]
    return value
