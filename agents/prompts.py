"""Write the policy's prompts, and read actions from its text.

A prompt is a pure function of the turns so far and the new observation. `Transcript` appends to the ids of the last
turn, so an episode is one growing sequence. `Template` writes every prompt from the start, so each turn is a separate
sequence. Neither encodes again what the policy has sampled. Text from outside the prompter (observations, goals,
actions) is quoted, see `agents.quoting`: it is plain text in a prompt, never a control token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Protocol

import jinja2
from markupsafe import Markup

from agents.chat_templates import FILLER, MARK, answer_end_id, append_text, end_id, render_chat
from agents.episode import ParseStatus, Turn
from agents.parsing import check_action, project_sokoban, project_webshop
from agents.quoting import encode, encode_quoted, plain, quote
from agents.samples import EPISODES, TURNS
from envs.core import BRIEF, Info, UnknownNameError
from envs.tags import PairedTags

ACT = "<act>"  # asks for an action; a control token of policies that are made here (`agents.policies.tiny`)
_ACTION = PairedTags("action", ignore_case=True)


class Prompter(Protocol):
    """Writes the prompts of a policy and reads its answers."""

    layout: str  # of the training samples made from its episodes, see `agents.samples`; MIXED if it may be either
    max_prompt_tokens: int | None  # longer prompts end the episode, like prompts that exceed the policy's context

    def prompt_ids(self, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info) -> list[int]:
        """The ids to continue, given the finished turns and the environment's newest observation and info."""

    def action_ids(self, tokenizer: Any, action: str) -> list[int]:
        """The completion that demonstrates `action`, including the stop token."""

    def write(self, action: str) -> str:
        """The text of that completion: `parse` returns the action."""

    def parse(self, text: str) -> str | None:
        """The action in a completion's text; None if there is none."""

    def read(self, text: str, finished: bool, info: Info) -> tuple[str, ParseStatus]:
        """The action to send to the environment, and the text's parse status; see `parsing.check_action`."""


class Transcript:
    """`<bos> observation <act> action <eos> observation <act> action <eos> …`: one sequence an episode.

    Without a `<bos>`it begins with the observation. Earlier observations are in the sequence already, so
    an environment may give only what is new (`info["brief"]`).
    """

    layout = EPISODES
    max_prompt_tokens: int | None = None

    def __init__(self) -> None:
        # Observations repeat, and encoding is slow.
        self._encode = lru_cache(maxsize=100_000)(encode)
        self._encode_quoted = lru_cache(maxsize=100_000)(encode_quoted)

    def prompt_ids(self, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info) -> list[int]:
        """The previous ids, the new observation, and the token that asks for an action."""
        if turns:
            before = [*turns[-1].prompt_ids, *turns[-1].completion_ids]
            if before[-1] != end_id(tokenizer):
                before.append(end_id(tokenizer))  # a completion that was cut off is closed here
        else:
            before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return [*before, *self._encode_quoted(tokenizer, info.get(BRIEF, observation)), *self._encode(tokenizer, ACT)]

    def action_ids(self, tokenizer: Any, action: str) -> list[int]:
        """The action's ids and the end-of-sequence token."""
        return [*self._encode_quoted(tokenizer, action), end_id(tokenizer)]

    def write(self, action: str) -> str:
        """The action and nothing else."""
        return action

    def parse(self, text: str) -> str | None:
        """The whole text is the action; None if it is blank."""
        return text.strip() or None

    def read(self, text: str, finished: bool, info: Info) -> tuple[str, ParseStatus]:
        """See `agents.parsing.check_action`."""
        return check_action(text, self.parse(text), finished, info)


class Verbatim:
    """For environments that write their own prompts and read whole completions, as the protocols of env=search do.

    The first observation is a message of the user. Later ones continue the answer as plain text (Search-R1), or are
    messages of the user themselves (`messages`). `opening` begins every answer, like IGPO's `<think>`. An episode is
    one sequence. Sampled ids stay as they are: what a protocol cuts from a completion is still in the next prompt.
    """

    layout = EPISODES
    max_prompt_tokens: int | None = None

    def __init__(self, messages: bool = False, opening: str = "") -> None:
        self.messages, self.opening = messages, opening

    def prompt_ids(self, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info) -> list[int]:  # noqa: ARG002
        """The previous ids and the new observation."""
        opening = encode(tokenizer, self.opening) if self.opening else ()
        if not turns:
            return [*message_ids(tokenizer, quote(observation), around=True), *opening]
        before = [*turns[-1].prompt_ids, *turns[-1].completion_ids]
        if not self.messages:
            return [*before, *encode_quoted(tokenizer, observation), *opening]
        roles = [("user", FILLER), ("assistant", MARK), ("user", quote(observation))]
        conversation = [{"role": role, "content": content} for role, content in roles]
        between = render_chat(tokenizer, conversation, add_generation_prompt=True).partition(MARK)[2]
        return [*append_text(before, between, partial(encode, tokenizer)), *opening]

    def action_ids(self, tokenizer: Any, action: str) -> list[int]:
        """The text and the token that ends an answer."""
        return [*encode_quoted(tokenizer, action), answer_end_id(tokenizer)]

    def write(self, action: str) -> str:
        """The text."""
        return action

    def parse(self, text: str) -> str | None:
        """The text; None if it is blank."""
        return text if text.strip() else None

    def read(self, text: str, finished: bool, info: Info) -> tuple[str, ParseStatus]:
        """See `agents.parsing.check_action`."""
        return check_action(text, self.parse(text), finished, info)


def message_ids(tokenizer: Any, text: str, *, around: bool) -> list[int]:
    """A prompt with one message, which may be quoted in parts; through the chat template if there is one.

    Without a chat template, `around` adds the ids that the tokenizer puts around a whole document.
    """
    if not tokenizer.chat_template:
        return list(encode(tokenizer, text, around=around))
    message = {"role": "user", "content": text}
    return list(encode(tokenizer, render_chat(tokenizer, [message], add_generation_prompt=True)))


def written(prompter: Prompter, action: str) -> str:
    """`prompter.write(action)` with the action quoted; all of it is quoted if the form changes the action."""
    text, parts = prompter.write(action), prompter.write(quote(action))
    return parts if plain(parts) == text else quote(text)


def read_template(kind: str, folder: Traversable, name: str, *, quoting: bool = False) -> jinja2.Template:
    """`<name>.jinja` in `folder`; with `quoting`, the values of its variables are quoted.

    Raises `UnknownNameError` with the names that exist; `kind` is what the error calls a template.
    """
    known = sorted(f.name.removesuffix(".jinja") for f in folder.iterdir() if f.name.endswith(".jinja"))
    if name not in known:
        raise UnknownNameError(kind, name, known)
    source = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    if quoting:
        # This uses Jinja's HTML escaping: text of the template itself, in blocks and macros, is `Markup` and unchanged.
        # Put such text and a variable side by side in a template: `~` would escape the variable as HTML.
        environment.autoescape = True
        environment.finalize = _quote_variable
        environment.filters["length"] = lambda value: len(plain(value) if isinstance(value, str) else value)
    return environment.from_string(source)


def _quote_variable(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(quote(str(value)))


class Template:
    """A Jinja template over the last `history` turns, with the action between `<action>` tags.

    With `name="gigpo_alfworld"` these are the prompts of GiGPO (arXiv 2505.10978; `langfengQ/verl-agent`,
    `agent_system/environments/prompts/alfworld.py`): they list the admissible actions and ask for reasoning.
    """

    layout = TURNS
    max_prompt_tokens: int | None = None

    def __init__(self, name: str, history: int = 2) -> None:
        """`name` is a file `agents/templates/<name>.jinja`. Raises `UnknownNameError` with those that exist."""
        self.template = read_template("prompt template", resources.files("agents") / "templates", name, quoting=True)
        if history < 0:
            raise ValueError(f"history must be at least 0, got {history}")
        self.history = history

    def render(self, turns: Sequence[Turn], observation: str, info: Info) -> str:
        """The prompt as text. The template sees `goal`, `observation`, `admissible`, `step` and `history`."""
        return plain(self._render(turns, observation, info))

    def _render(self, turns: Sequence[Turn], observation: str, info: Info) -> str:
        """The same, with the text from outside the template quoted."""
        recent = list(turns[len(turns) - min(self.history, len(turns)) :])
        first = len(turns) - len(recent) + 1
        return self.template.render(
            goal=info["goal"],
            observation=observation,
            admissible=info["admissible"] or [],
            step=len(turns),
            history=[
                {"step": first + i, "observation": t.observation, "action": t.action} for i, t in enumerate(recent)
            ],
        )

    def prompt_ids(self, tokenizer: Any, turns: Sequence[Turn], observation: str, info: Info) -> list[int]:
        """The rendered prompt; through the tokenizer's chat template if it has one."""
        return message_ids(tokenizer, self._render(turns, observation, info), around=True)

    def action_ids(self, tokenizer: Any, action: str) -> list[int]:
        """The action in its tags, and the token that ends an answer."""
        return [*encode(tokenizer, written(self, action)), answer_end_id(tokenizer)]

    def write(self, action: str) -> str:
        """The action in its tags."""
        return f"<action>{action}</action>"

    def parse(self, text: str) -> str | None:
        """The text between the first pair of action tags, in lower case as in the official projection."""
        found = _ACTION.search(text)
        return (found.content.strip().lower() or None) if found else None

    def read(self, text: str, finished: bool, info: Info) -> tuple[str, ParseStatus]:
        """See `agents.parsing.check_action`."""
        return check_action(text, self.parse(text), finished, info)


class WebShopTemplate(Template):
    """GiGPO's prompts for WebShop, and its reading of answers (`prompts/webshop.py` and `projection.py` there).

    An answer without tags is played and counts as malformed. An action that is not admissible counts as valid.
    """

    def __init__(self, history: int = 2) -> None:
        super().__init__("gigpo_webshop", history)

    def read(self, text: str, finished: bool, info: Info) -> tuple[str, ParseStatus]:  # noqa: ARG002
        """See `agents.parsing.project_webshop`."""
        return _projected(*project_webshop(text), finished)


class SokobanTemplate(Template):
    """verl-agent's prompts for Sokoban, and its reading of answers (`prompts/sokoban.py`, `projection.py` there).

    The prompts show what `env.observation=verl_agent` gives. An answer without an action is a turn without a move and
    counts as malformed; a blocked move counts as valid.
    """

    def __init__(self, history: int = 2) -> None:
        super().__init__("gigpo_sokoban", history)

    def read(self, text: str, finished: bool, info: Info) -> tuple[str, ParseStatus]:  # noqa: ARG002
        """See `agents.parsing.project_sokoban`."""
        return _projected(*project_sokoban(text), finished)


def _projected(action: str, valid: bool, finished: bool) -> tuple[str, ParseStatus]:
    if valid:
        return action, ParseStatus.OK
    return action, ParseStatus.MALFORMED if finished else ParseStatus.TRUNCATED
