"""Which ids may stand where in a completion, so that it can only be one of the admissible actions.

    go ──► to ──► desk 1 ──► <eos>       A `Mask` is a prefix tree over the ids of the actions. A completion follows one
     │      └───► desk 2 ──► <eos>       path of it, and each id is sampled among those that its node allows. A node
     └───► …                             that allows a single id has nothing to sample.

Two things are free text: what comes before the action, where the prompter's form has something in front of it
(`<action>`), and what an action leaves open (`search[<your query>]`).

Invalid action masking: Huang and Ontañón, *A Closer Look at Invalid Action Masking in Policy Gradient Algorithms*,
arXiv 2006.14171. Log-probabilities are those of the masked distribution, in sampling and in training alike.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.agent import Decision, PolicyAgent, View
from agents.parsing import SLOT, THINK_CLOSE, fits, has_slot
from agents.policies.base import Request
from agents.prompts import Prompter, written
from agents.quoting import control_ids, encode, plain, quote
from envs.core import Need

_MARK = "polyturnslot"  # stands for an action, or for what it leaves open, while a form is taken apart
_MARKED = re.compile(f"{re.escape(quote(_MARK))}|{_MARK}")
# Of free text: what a form may read as something else. Letters, digits and blanks are read as they are.
_SIGNS = string.punctuation + "".join(map(chr, [*range(0x20), 0x7F, 0x85, 0x2028, 0x2029]))
MOST_TREES = 512  # that are kept for states that come again


class Node:
    """A place in a completion.

    `children` are the ids that lead on to another node, or that end the completion (None). With `free` [V], each id
    for which it is true may stand here too, and leads to `after`.
    """

    __slots__ = ("_ids", "after", "children", "free")

    def __init__(self, free: NDArray[np.bool_] | None = None) -> None:
        self.children: dict[int, Node | None] = {}
        self.free = free
        self.after = self
        self._ids: NDArray[np.int64] | None = None

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of its children. Nothing may be added to the tree after this was asked for."""
        if self._ids is None:
            self._ids = np.fromiter(self.children, np.int64, len(self.children))
        return self._ids

    @property
    def forced(self) -> int | None:
        """The only id that may stand here; None where there are several."""
        return next(iter(self.children)) if self.free is None and len(self.children) == 1 else None

    def follow(self, token: int) -> Node | None:
        """The node after `token`; None where it ends the completion. Raises `ValueError` where it may not stand."""
        if token in self.children:
            return self.children[token]
        if self.free is not None and token < len(self.free) and self.free[token]:
            return self.after
        raise ValueError(f"id {token} is masked: not among {len(self.children)} allowed ids, nor in free text")

    def add(self, ids: Sequence[int]) -> Node:
        """The node that `ids` lead to, made where it is not there yet."""
        node = self
        for token in ids:
            node.children[token] = child = node.children.get(token) or Node()
            node = child
        return node


class Mask:
    """What a completion may be in one state: `first` is the node of its first id.

    `longest` counts the ids of the longest action, of what leads to it and of what closes it; a slot counts as one.
    """

    def __init__(self, form: ActionForm, actions: Sequence[str]) -> None:
        self._form = form
        sayable = [action for action in actions if form.can_say(action)]
        if not sayable:
            raise ValueError(f"none of the admissible actions can be written in this form, as {list(actions[:3])}")
        slots = [action for action in sayable if has_slot(action)]
        # What a slot may hold anyway has no path of its own: free text and names would be one id apart.
        actions = [action for action in sayable if action in slots or not fits(action, slots)]
        self._actions = [form.take_apart(action) for action in actions]
        self._trees: dict[str, Node | None] = {}
        self.longest = len(form.lead) + max(
            len(ids) + sum(1 + len(form.closing(text)) for text in others) + 1 for _, ids, _, others in self._actions
        )
        first = form.before_action or self._tree("")
        for token in reversed(form.lead):
            node = Node()
            node.children[token], first = first, node
        assert first is not None, "an action has ids"
        self.first = first

    def follow(self, node: Node, ids: Sequence[int]) -> Node | None:
        """The node after a completion of `ids`, the last of which stands at `node`; None where that ended it.

        So does a token that ends the head and goes on as no action does: nothing admissible can follow.
        """
        following = node.follow(ids[-1])
        if node is not self._form.before_action:
            return following
        rest = self._form.beyond_head(ids)
        return following if rest is None else self._tree(rest)

    def path(self, ids: Sequence[int]) -> list[Node]:
        """The node at which each of the ids of a completion stands. Raises `ValueError` where one is masked."""
        nodes: list[Node] = []
        node: Node | None = self.first
        for count in range(1, len(ids) + 1):
            if node is None:
                raise ValueError(f"the completion has ended before its id {count} of {len(ids)}")
            nodes.append(node)
            node = self.follow(node, ids[:count])
        return nodes

    def _tree(self, rest: str) -> Node | None:
        """The tree of the actions that begin with `rest`; None where none does."""
        if rest not in self._trees:
            root = Node()
            for said, ids, text, others in self._actions:
                if said == rest:
                    self._add(root, ids, others)
                elif text.startswith(rest):  # an action that is usually written by other ids
                    self._add(root, encode(self._form.tokenizer, quote(text[len(rest) :])), others)
            self._trees[rest] = root if root.children else None
        return self._trees[rest]

    def _add(self, root: Node, ids: Sequence[int], others: Sequence[str]) -> None:
        """Add the action that begins with `ids`, and has a slot before each of `others`."""
        for text in others:
            start = root.add(ids)
            if start.free is None:  # a slot holds one id or more
                start.free, start.after = self._form.slot, Node(self._form.slot)
            root, ids = start.after, self._form.closing(text)
        root.add(ids).children[self._form.end] = None


class ActionForm:
    """How a prompter's actions are written in the ids of a tokenizer; makes the `Mask` of each state.

    `lead` is what a chat template leaves to the model to write before its answer: the ids of a channel's name. They are
    forced. A blank is left out.

    Raises `ValueError` where the form has nothing in front of an action, and the prompt has begun a reasoning.
    """

    def __init__(self, prompter: Prompter, tokenizer: Any) -> None:
        self.prompter, self.tokenizer = prompter, tokenizer
        *said, self.end = prompter.action_ids(tokenizer, _MARK)
        before, found, _ = tokenizer.decode(said, skip_special_tokens=False).partition(prompter.write(_MARK))
        self.lead = encode(tokenizer, before) if found and before.strip() else ()
        if tuple(said[: len(self.lead)]) != self.lead:
            raise ValueError(f"{before!r} stands before each answer, and has no ids of its own in this tokenizer")
        self.head, self.tail = prompter.write(_MARK).split(_MARK)
        # What ends a reasoning that the prompt has begun; nothing where it has begun none.
        self._opening = next((o for o in ("", THINK_CLOSE) if self._reads(f"{o}{prompter.write(_MARK)}", _MARK)), "")
        if not self.head and self._opening:
            raise ValueError(
                "reasoning has to end before an action, and this form does not say where; use a parser with tags"
            )
        refused = {c for c in _SIGNS if not self._reads(f"{self._opening}{self.head}a{c}a{self.tail}", f"a{c}a")}
        self.slot = _free_ids(tokenizer, len(tokenizer), frozenset({"]", "\n", self.tail[:1], *refused}) - {""})
        self.before_action = Node(_free_ids(tokenizer, len(tokenizer), frozenset())) if self.head else None
        self._mask = lru_cache(MOST_TREES)(lambda actions: Mask(self, actions))
        # Most states share most of their actions, and encoding is slow.
        self.can_say, self.take_apart = lru_cache(100_000)(self._can_say), lru_cache(100_000)(self._take_apart)

    def mask(self, actions: Sequence[str]) -> Mask:
        """The mask of a state in which these actions are admissible. Raises `ValueError` where there are none."""
        if not actions:
            raise ValueError("a mask needs an admissible action, and there is none")
        made: Mask = self._mask(tuple(actions))
        return made

    def action_ids(self, action: str, actions: Sequence[str]) -> list[int]:
        """The completion that a demonstration of `action` would be, on a path of the mask of `actions`.

        Where the mask has none, as for an action with a sign that ends a slot, `Mask.path` refuses the ids.
        """
        opening = [*self.lead, *(encode(self.tokenizer, self._opening) if self._opening else ())]
        for pattern in actions:
            found = re.fullmatch("(.+)".join(map(re.escape, SLOT.split(pattern))), action)
            if found and found.groups():
                first, *others = self.pieces(pattern)
                ids = [*opening, *encode(self.tokenizer, first)]
                for text, said in zip(others, found.groups(), strict=True):
                    ids += [*encode(self.tokenizer, quote(said)), *self.closing(text)]
                return [*ids, self.end]
        return [*opening, *encode(self.tokenizer, written(self.prompter, action)), self.end]

    def _reads(self, text: str, action: str) -> bool:
        """Whether `action` is what the environment gets of a completion's text."""
        return self.prompter.read(text, True, {"admissible": None})[0] == action

    def _can_say(self, action: str) -> bool:
        """Whether the form and the tokenizer leave an action as it is."""
        said = SLOT.sub("a", action)
        text = self.tokenizer.decode(encode(self.tokenizer, written(self.prompter, said)), skip_special_tokens=False)
        return self._reads(f"{self._opening}{text}", said)

    def _take_apart(self, action: str) -> tuple[str, tuple[int, ...], str, list[str]]:
        """What the token that completes the head says of the action, its ids, its text, and the texts behind slots.

        The ids are those behind that token, up to the first slot, and so is the text behind the head.
        """
        first, *others = self.pieces(action)
        return *self.after_head(first), plain(first)[len(self.head) :], others

    def pieces(self, action: str) -> list[str]:
        """The text of an action, cut where it has slots; quoted where it is not the prompter's own."""
        return _MARKED.split(written(self.prompter, SLOT.sub(_MARK, action)))

    def after_head(self, text: str) -> tuple[str, tuple[int, ...]]:
        """The ids of `text` behind those that write its head, and what those say beyond it."""
        ids, count = encode(self.tokenizer, text), 0
        while not (said := self.tokenizer.decode(ids[:count])).startswith(self.head):
            if count == len(ids):
                raise ValueError(f"the tokenizer does not give {self.head!r} back, which stands before each action")
            count += 1
        return said[len(self.head) :], ids[count:]

    def beyond_head(self, ids: Sequence[int]) -> str | None:
        """What the last of `ids` says beyond the head that it completes; None where it completes none."""
        # A token is a byte or more, so that the head lies within as many tokens as it has bytes.
        head = self.head.lower()  # parsers of tags take either case
        if head not in self.tokenizer.decode(ids[-len(self.head.encode()) :]).lower():
            return None
        text = self.tokenizer.decode(ids)
        place = text.lower().rindex(head) + len(head)
        # Where an action would not be read, as in the middle of reasoning, the head is text like any other.
        return text[place:] if self._reads(f"{text[:place]}{_MARK}{self.tail}", _MARK) else None

    def closing(self, text: str) -> tuple[int, ...]:
        """The ids of `text` behind a slot."""
        said, whole = encode(self.tokenizer, "a"), encode(self.tokenizer, f"a{text}")
        return whole[len(said) :] if whole[: len(said)] == said else encode(self.tokenizer, text)


@lru_cache(maxsize=8)
def _free_ids(tokenizer: Any, size: int, refused: frozenset[str]) -> NDArray[np.bool_]:
    """[V] which ids free text may hold: no control tokens, and no text with one of the `refused` characters."""
    blank = tokenizer.convert_tokens_to_ids("▁")  # of SentencePiece, which alone decodes to nothing
    free = np.array([bool(text) and refused.isdisjoint(text) for text in _texts(tokenizer, size)])
    if blank is not None and blank != tokenizer.unk_token_id:
        free[blank] = True
    free[sorted(set(tokenizer.all_special_ids) if not refused else control_ids(tokenizer))] = False
    return free


@lru_cache(maxsize=2)
def _texts(tokenizer: Any, size: int) -> list[str]:
    """The text of every id."""
    return list(tokenizer.batch_decode([[i] for i in range(size)]))


@dataclass(eq=False)
class MaskedAgent(PolicyAgent):
    """A `PolicyAgent` that can write nothing but one of `info["admissible"]`, token by token.

    An episode ends where its longest action no longer fits (`context_limit`).
    """

    masked: ClassVar[bool] = True
    needs = frozenset({Need.ADMISSIBLE})

    def __post_init__(self) -> None:
        if not self.policy.takes_masks:
            raise ValueError(
                f"agent.player=masked samples under a mask, and {type(self.policy).__name__} cannot; "
                "use rollout=local or rollout=vllm"
            )

    @cached_property
    def form(self) -> ActionForm:
        """How its actions are written; known once a prompt was made."""
        return ActionForm(self.prompter, self.policy.tokenizer)

    def _decide(self, views: Sequence[View], prompts: Sequence[list[int]]) -> list[Decision]:
        masks = [self.form.mask(view.info["admissible"]) for view in views]
        decisions = [Decision("", None, prompt) for prompt in prompts]
        fits = [
            i for i, (prompt, mask) in enumerate(zip(prompts, masks, strict=True))
            if len(prompt) + mask.longest <= self.policy.context_length
        ]  # fmt: skip
        requests = [Request(views[i].key, prompts[i], masks[i]) for i in fits]
        completions = self.policy.generate(requests, self.sampling, self.generator)
        for i, done in zip(fits, completions, strict=True):
            decisions[i] = self._read(prompts[i], done, views[i].info)
        return decisions
