"""Protocols as one interface: what a turn of a conversation about a question does.

    protocol = PROTOCOLS["search_r1"]
    dialogue = Dialogue("Who wrote …?", ("Leo Tolstoy",), max_turns=4)
    move = protocol.play(dialogue, "<search>…</search>", find)     # find: queries in, hits for each out
    dialogue = dialogue.after(move)

Nothing here has a state: a dialogue is data, and a move is computed from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from envs.search import igpo, mt_grpo, polyturn, search_r1, verl_agent
from envs.search.corpus import Passage
from envs.search.grading import exact_match
from envs.search.retrieval import Hit

Find = Callable[[Sequence[str]], list[list[Hit]]]


class Turn(NamedTuple):
    """What was played (as the protocol keeps it) and what came back."""

    action: str
    observation: str


@dataclass(frozen=True)
class Dialogue:
    """A conversation so far."""

    question: str
    answers: tuple[str, ...]
    max_turns: int
    turns: tuple[Turn, ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether the next turn is the last one that may be played."""
        return len(self.turns) + 1 >= self.max_turns

    def after(self, move: Move) -> Dialogue:
        """The conversation with one more turn."""
        return replace(self, turns=(*self.turns, Turn(move.kept, move.observation)))

    def text(self, *more: str) -> str:
        """All turns joined, and `more`."""
        return "".join([part for turn in self.turns for part in turn] + list(more))


@dataclass(frozen=True)
class Move:
    """What a turn does."""

    kept: str  # the part of the policy's text that the protocol keeps
    observation: str
    kind: str  # "search", "answer", or "malformed"
    queries: tuple[str, ...] = ()
    passages: tuple[Passage, ...] = ()  # that came back, best first
    done: bool = False
    reward: float = 0.0
    score: float = 0.0  # in [0, 1]; 1 is a success, which ends the episode
    turn_reward: float | None = None  # None: by the environment's own rules
    tool_result: bool | None = None  # whether a tool gave a result; None: whether it was a search


class Protocol(ABC):
    """A way to play and to grade questions. `max_turns` and `top_k` are its defaults."""

    max_turns: int
    top_k: int
    extra_turns = 0  # that may be played after `max_turns`

    def begin(self, question: str) -> str:
        """The first observation."""
        return question

    def next_prompt(self, dialogue: Dialogue) -> str:
        """The observation after a turn."""
        return dialogue.turns[-1].observation

    def state_key(self, dialogue: Dialogue) -> str | None:  # noqa: ARG002
        """The anchor of the state; None: by the environment's own rules."""
        return None

    @abstractmethod
    def play(self, dialogue: Dialogue, text: str, find: Find) -> Move:
        """What the next turn does, if the policy writes `text`."""


class Polyturn(Protocol):
    """See `envs.search.polyturn`. The reward is 1 for a right answer, otherwise 0."""

    max_turns, top_k = polyturn.MAX_TURNS, polyturn.TOP_K

    def play(self, dialogue: Dialogue, text: str, find: Find) -> Move:
        action = polyturn.parse(text)
        if action.kind == "search":
            [hits] = find([action.content])
            found = tuple(hit.passage for hit in hits)
            return Move(text, polyturn.observation(found), "search", (action.content,), found)
        if action.kind is None:
            return Move(text, polyturn.MALFORMED, "malformed")
        right = float(exact_match(action.content, dialogue.answers))
        return Move(text, "Right." if right else "Wrong.", "answer", done=True, reward=right, score=right)


class SearchR1(Protocol):
    """See `envs.search.search_r1`. The reward is its exact match of prompt and response, at the end."""

    max_turns, top_k = search_r1.MAX_TURNS, search_r1.TOP_K
    extra_turns = 1  # the final generation

    def begin(self, question: str) -> str:
        return search_r1.prompt(question)

    def play(self, dialogue: Dialogue, text: str, find: Find) -> Move:
        kept = search_r1.cut(text)
        action = search_r1.parse(kept)
        searches = action.kind == "search"
        hits = find([action.content])[0] if searches and not dialogue.is_last else []
        found = tuple(hit.passage for hit in hits)
        observation = "" if dialogue.is_last else search_r1.observation(action, [p.contents for p in found])
        done = action.kind == "answer"
        solution = search_r1.prompt(dialogue.question) + dialogue.text(kept)
        score = search_r1.em(solution, dialogue.answers) if done or dialogue.is_last else 0.0
        return Move(
            kept, observation, action.kind or "malformed", (action.content,) if searches else (), found,
            done=done or score == 1, reward=score, score=score,
        )  # fmt: skip


class VerlAgent(Protocol):
    """See `envs.search.verl_agent`. Observations are whole prompts; the reward is 1 for a right answer."""

    max_turns, top_k = verl_agent.MAX_TURNS, verl_agent.TOP_K

    def begin(self, question: str) -> str:
        return verl_agent.prompt(question, ())

    def next_prompt(self, dialogue: Dialogue) -> str:
        steps = [verl_agent.Step(turn.action, turn.observation.strip()) for turn in dialogue.turns]
        return verl_agent.prompt(dialogue.question, steps)

    def state_key(self, dialogue: Dialogue) -> str | None:
        return dialogue.turns[-1].observation.strip() if dialogue.turns else dialogue.question

    def play(self, dialogue: Dialogue, text: str, find: Find) -> Move:
        action, valid = verl_agent.project(text)
        query = verl_agent.query_of(action)
        kind = "malformed" if not valid else "search" if query is not None else "answer"
        if verl_agent.is_last(action, len(dialogue.turns) + 1, dialogue.max_turns):
            score = verl_agent.em(dialogue.text(action), dialogue.answers)
            return Move(action, "", kind, done=True, reward=score, score=score)
        if query is None:
            return Move(action, "", kind)
        found = tuple(hit.passage for hit in find([query])[0])
        text = verl_agent.tool_text(verl_agent.write_passages([p.contents for p in found]))
        return Move(action, verl_agent.information(text), kind, (query,), found, tool_result=True)


class Igpo(Protocol):
    """See `envs.search.igpo`. The reward is its F1, or -2, at the end."""

    max_turns, top_k = igpo.MAX_TURNS, igpo.TOP_K

    def begin(self, question: str) -> str:
        return f"{igpo.system()}\n\n{question}"

    def play(self, dialogue: Dialogue, text: str, find: Find) -> Move:
        kept = text if text.startswith(igpo.OPENING) else igpo.OPENING + text
        parsed = igpo.parse(kept)
        done = parsed.stop or dialogue.is_last
        reward = 0.0
        if done:
            reward = igpo.score(dialogue.text(kept), igpo.SPLIT.join(dialogue.answers))
        score = max(reward, 0.0)
        if parsed.stop:
            kind = "answer" if "<answer>" in kept and "</answer>" in kept else "malformed"
            return Move(kept, "", kind, done=True, reward=reward, score=score)
        queries = igpo.queries_of(parsed.payload)
        hits = find(queries) if queries else []
        pages = [
            [{"title": h.passage.title, "url": h.passage.id, "quick_summary": h.passage.text} for h in one]
            for one in hits
        ]
        observation = igpo.observation(igpo.tool_content(parsed.payload, pages))
        return Move(
            kept, observation, "malformed" if queries is None else "search", tuple(queries or ()),
            tuple(hit.passage for one in hits for hit in one), done=score == 1, reward=reward, score=score,
            tool_result=queries is not None,
        )  # fmt: skip


class MtGrpo(Protocol):
    """See `envs.search.mt_grpo`. The reward is that of the outcome, at the end; success is an exact match."""

    max_turns, top_k = 10, mt_grpo.TOP_K

    def begin(self, question: str) -> str:
        return f"{mt_grpo.SYSTEM}\n{mt_grpo.prompt(question)}"

    def play(self, dialogue: Dialogue, text: str, find: Find) -> Move:
        messages = [
            {"role": role, "content": content}
            for turn in dialogue.turns
            for role, content in zip(("assistant", "user"), turn, strict=True)
        ]
        messages.append({"role": "assistant", "content": text})
        parsed = mt_grpo.parse(text)
        kind = "answer" if parsed.answer is not None else "malformed" if parsed.tool is None else "search"
        golds = [answer.lower() for answer in dialogue.answers]
        queries: list[str] = []
        found: list[Passage] = []
        observation, done = "", mt_grpo.is_over(messages)
        if not done:

            def look_up(query: str) -> str:
                queries.append(str(query))
                found.extend(hit.passage for hit in find([str(query)])[0])
                return "\n".join(f"{p.title}\n{p.text}" for p in found) or mt_grpo.NOTHING_FOUND

            observation = mt_grpo.respond(text, {"wiki_search": mt_grpo.wiki_search(look_up)})
            messages.append({"role": "user", "content": observation})
        grades = mt_grpo.grade(messages, golds)
        reward = grades.outcome_reward if done or dialogue.is_last else 0.0
        score = grades.exact_match if done or dialogue.is_last else 0.0
        executed = observation.startswith("<result>")
        return Move(
            text, observation, kind if done or executed or kind == "malformed" else "malformed", tuple(queries),
            tuple(found), done=done, reward=reward, score=score if done else 0.0,
            turn_reward=grades.turn_reward if executed else 0.0, tool_result=executed,
        )  # fmt: skip


PROTOCOLS: dict[str, Protocol] = {
    "polyturn": Polyturn(),
    "search_r1": SearchR1(),
    "verl_agent": VerlAgent(),
    "igpo": Igpo(),
    "mt_grpo": MtGrpo(),
}
