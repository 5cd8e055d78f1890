"""Questions answered with a search tool: `polyturn/Search-v0`.

    Which river flows through the birthplace of Maren Holt?
    > search[Maren Holt]
    Maren Holt: Maren Holt is a painter, born in Ardle, married to Jon Veld and taught by Ira Sand.
    > search[Ardle]
    Ardle: Ardle is a town in Norland on the river Tarn. Its mayor is Lena Brook.
    > answer[Tarn]

The protocol decides what is read, shown and graded; `polyturn` is the project's own, see `envs.search.dialogue`.

Rules reward turns, under every protocol but `mt_grpo`, which has its own: `info["turn_reward"]` is 1.0 for a search
that found a passage that the question needs for the first time, and `info["tool_result"]` says whether a search was
made. `info["signals"]` has the facts behind it: `new_gold`, the number of such passages; `answer_found`, whether a
right answer stands in what came back; `repeated_query`; `malformed`. `info["searches"]` counts searches, and
`info["least_searches"]` is the smallest number that is enough, if it is known. `info["state_key"]` is the set of
passages that were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.core import Info, Task, TextEnv, UnknownNameError
from envs.search.corpus import Passage
from envs.search.dialogue import PROTOCOLS, Dialogue, Move
from envs.search.generate import UNKNOWN
from envs.search.grading import normalize
from envs.search.retrieval import Hit, RetrieverSpec, open_retriever

ENV_ID = "polyturn/Search-v0"
ANY_SEARCH, ANY_ANSWER = "search[<your query>]", "answer[<your answer>]"


@lru_cache(1 << 14)
def _normalized(passage: Passage) -> str:
    return f" {normalize(passage.contents)} "


@dataclass(frozen=True)
class _State:
    """Everything that an episode changes."""

    dialogue: Dialogue
    seen: tuple[str, ...] = ()  # ids of passages, in the order in which they were found
    named: tuple[str, ...] = ()  # what they name
    queries: tuple[str, ...] = ()


class SearchEnv(TextEnv):
    """Plays the question of a task.

    The payload of a task has `question` and `answers`. If it has `gold`, the ids or titles of the passages that are
    needed, searches are rewarded; `corpus` is the file that is searched. With `named`, answers are listed in
    `info["admissible"]`: what passages name, and "unknown".
    """

    def __init__(
        self,
        retriever: RetrieverSpec | None = None,
        protocol: str = "polyturn",
        top_k: int | None = None,
        max_turns: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        """`retriever` None is BM25 over the task's corpus. Turns and `top_k` default to the protocol's.

        Raises `UnknownNameError` for a protocol that does not exist.
        """
        if protocol not in PROTOCOLS:
            raise UnknownNameError("protocol", protocol, PROTOCOLS)
        self.protocol = PROTOCOLS[protocol]
        self.top_k = top_k or self.protocol.top_k
        super().__init__((max_turns or self.protocol.max_turns) + self.protocol.extra_turns, render_mode)
        self._spec = retriever
        self._task: dict[str, Any] = {}  # the payload, which is never changed
        self._gold: frozenset[str] = frozenset()
        self._state = _State(Dialogue("", (), self.max_turns))

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        del seed  # nothing is drawn
        payload = task.payload if isinstance(task, Task) else {}
        missing = sorted({"question", "answers", "corpus"} - set(payload))
        if missing:
            raise ValueError(
                f"{ENV_ID} needs a question: reset(options={{'task': …}}) with a Task whose payload has a 'question', "
                f"'answers' and a 'corpus'; got {task!r:.200}, without {', '.join(missing)}"
            )
        self._enter(dict(payload))
        dialogue = Dialogue(payload["question"], tuple(payload["answers"]), self.max_turns)
        self._state = _State(dialogue)
        return self.protocol.begin(dialogue.question), self._info_of(None, ())

    def _enter(self, payload: dict[str, Any]) -> None:
        self._task, self._gold = payload, frozenset(payload.get("gold", ()))
        self._answers = [normalize(answer) for answer in payload["answers"]]
        spec = self._spec or RetrieverSpec(corpus=Path(payload["corpus"]))
        self._retriever = open_retriever(spec)

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        before = self._state
        move = self.protocol.play(before.dialogue, action, self._find)
        self._state = _State(
            before.dialogue.after(move),
            tuple(dict.fromkeys([*before.seen, *(passage.id for passage in move.passages)])),
            tuple(dict.fromkeys([*before.named, *(name for passage in move.passages for name in passage.names)])),
            (*before.queries, *move.queries),
        )
        observation = self.protocol.next_prompt(self._state.dialogue)
        return observation, move.reward, move.done, self._info_of(move, before.queries, before.seen)

    def _find(self, queries: Sequence[str]) -> list[list[Hit]]:
        return self._retriever.search(queries, self.top_k)

    def _info_of(self, move: Move | None, asked: Sequence[str], seen: Sequence[str] = ()) -> Info:
        state, task = self._state, self._task
        info: Info = {
            "goal": state.dialogue.question,
            "type": task.get("type", ""),
            "admissible": self._admissible(),
            "answers": list(state.dialogue.answers),
            "state_key": self.protocol.state_key(state.dialogue) or f"found: {', '.join(sorted(state.seen))}",
            "searches": len(state.queries),
            "least_searches": task.get("least_searches"),
        }
        if move is None:
            return info
        found = {passage.id: passage for passage in move.passages if passage.id not in seen}
        new = sum(bool(self._gold & {passage.id, passage.title}) for passage in found.values())
        searched = move.kind == "search" and bool(move.queries)
        earlier = {normalize(query) for query in asked}
        return info | {
            "score": move.score,
            "success": move.score == 1,
            "turn_reward": float(new > 0) if move.turn_reward is None else move.turn_reward,
            "tool_result": searched if move.tool_result is None else move.tool_result,
            "signals": {
                "new_gold": new,
                "answer_found": any(self._holds_answer(passage) for passage in move.passages),
                "repeated_query": any(normalize(query) in earlier for query in move.queries),
                "malformed": move.kind == "malformed",
            },
        }

    def _admissible(self) -> list[str] | None:
        if self.protocol is not PROTOCOLS["polyturn"]:
            return None
        if not self._task.get("named"):
            return [ANY_SEARCH, ANY_ANSWER]
        return [ANY_SEARCH, *(f"answer[{name}]" for name in (*self._state.named, UNKNOWN))]

    def _holds_answer(self, passage: Passage) -> bool:
        text = _normalized(passage)
        return any(answer and f" {answer} " in text for answer in self._answers)

    def _save(self) -> Any:
        return self._task, self._state

    def _load(self, saved: Any) -> None:
        task, self._state = saved
        self._enter(task)
