"""Masks: the ids that are allowed at each place of a completion, so that it can only be an admissible action.

    go ──► to ──► desk 1 ──► <eos>       A `Mask` is a prefix tree over the ids of the actions. A completion follows one
     │      └───► desk 2 ──► <eos>       path of it, and each id is sampled among those that its node allows. At a
     └───► …                             node with a single id nothing is sampled.

Two parts are free text: the text before the action, if the prompter's form has something in front of an action
(`<action>`), and the slot of an action (`search[<your query>]`).

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

_MARK = "polyturnslot"  # in place of an action or a slot, when a form is split
_MARKED = re.compile(f"{re.escape(quote(_MARK))}|{_MARK}")
# Characters that a form may read as something else in free text. Letters, digits and blanks are safe.
_SIGNS = string.punctuation + "".join(map(chr, [*range(0x20), 0x7F, 0x85, 0x2028, 0x2029]))
MOST_TREES = 512  # kept for states that occur again


class Node:
    """A place in a completion.

    `children` are the allowed ids, each with its next node, or None if it ends the completion. With `free` [V], each id
    for which it is true is allowed too, and leads to `after`.
    """

    __slots__ = ("_ids", "after", "children", "free")

    def __init__(self, free: NDArray[np.bool_] | None = None) -> None:
        self.children: dict[int, Node | None] = {}
        self.free = free
        self.after = self
        self._ids: NDArray[np.int64] | None = None

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of its children. Nothing may be added to the tree after the first call."""
        if self._ids is None:
            self._ids = np.fromiter(self.children, np.int64, len(self.children))
        return self._ids

    @property
    def forced(self) -> int | None:
        """The only allowed id; None if there are several."""
        return next(iter(self.children)) if self.free is None and len(self.children) == 1 else None

    def follow(self, token: int) -> Node | None:
        """The node after `token`; None if it ends the completion. Raises `ValueError` if it is not allowed."""
        if token in self.children:
            return self.children[token]
        if self.free is not None and token < len(self.free) and self.free[token]:
            return self.after
        raise ValueError(f"id {token} is masked: not among {len(self.children)} allowed ids, nor in free text")

    def add(self, ids: Sequence[int]) -> Node:
        """The node that `ids` lead to. Missing nodes are made."""
        node = self
        for token in ids:
            node.children[token] = child = node.children.get(token) or Node()
            node = child
        return node


class Kept(Node):
    """The ids that truncated sampling kept at a place of a completion, see `agents.policies.base.Sampling`."""

    __slots__ = ()

    def __init__(self, ids: NDArray[np.int64]) -> None:
        super().__init__()
        self._ids = ids

    @property
    def forced(self) -> int | None:
        """The only kept id; None if there are several."""
        return int(self.ids[0]) if len(self.ids) == 1 else None


class Mask:
    """The completions that are allowed in one state; `first` is the node of the first id.

    `longest` is the number of ids of the longest action, with the ids before and after it; a slot counts as one.
    """

    def __init__(self, form: ActionForm, actions: Sequence[str]) -> None:
        self._form = form
        writable = [action for action in actions if form.can_write(action)]
        if not writable:
            raise ValueError(f"none of the admissible actions can be written in this form, as {list(actions[:3])}")
        slots = [action for action in writable if has_slot(action)]
        # An action that fits into a slot has no path of its own: it is written in the slot.
        actions = [action for action in writable if action in slots or not fits(action, slots)]
        self._actions = [form.split_action(action) for action in actions]
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
        """The node after a completion of `ids`, the last of them at `node`; None if the completion has ended.

        It also ends after a token that completes the head and continues like no action: nothing admissible can follow.
        """
        following = node.follow(ids[-1])
        if node is not self._form.before_action:
            return following
        rest = self._form.beyond_head(ids)
        return following if rest is None else self._tree(rest)

    def path(self, ids: Sequence[int]) -> list[Node]:
        """The node of each id of a completion. Raises `ValueError` if an id is masked."""
        nodes: list[Node] = []
        node: Node | None = self.first
        for count in range(1, len(ids) + 1):
            if node is None:
                raise ValueError(f"the completion has ended before its id {count} of {len(ids)}")
            nodes.append(node)
            node = self.follow(node, ids[:count])
        return nodes

    def _tree(self, rest: str) -> Node | None:
        """The tree of the actions that begin with `rest`; None if there is none."""
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
    """Writes a prompter's actions as ids of a tokenizer, and makes the `Mask` of each state.

    `lead` are ids that some chat templates expect the model to write before its answer, the name of a channel. They are
    forced. A blank is left out.

    Raises `ValueError` if the prompt opens a reasoning and the form has nothing in front of an action.
    """

    def __init__(self, prompter: Prompter, tokenizer: Any) -> None:
        self.prompter, self.tokenizer = prompter, tokenizer
        *said, self.end = prompter.action_ids(tokenizer, _MARK)
        before, found, _ = tokenizer.decode(said, skip_special_tokens=False).partition(prompter.write(_MARK))
        self.lead = encode(tokenizer, before) if found and before.strip() else ()
        if tuple(said[: len(self.lead)]) != self.lead:
            raise ValueError(f"{before!r} stands before each answer, and has no ids of its own in this tokenizer")
        self.head, self.tail = prompter.write(_MARK).split(_MARK)
        # Ends a reasoning that the prompt has opened; otherwise empty.
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
        self.can_write, self.split_action = lru_cache(100_000)(self._can_write), lru_cache(100_000)(self._split_action)

    def mask(self, actions: Sequence[str]) -> Mask:
        """The mask of a state in which these actions are admissible. Raises `ValueError` if there are none."""
        if not actions:
            raise ValueError("a mask needs an admissible action, and there is none")
        made: Mask = self._mask(tuple(actions))
        return made

    def action_ids(self, action: str, actions: Sequence[str]) -> list[int]:
        """The completion that writes `action`, on a path of the mask of `actions`.

        If there is no path, for example for an action with a character that ends a slot, `Mask.path` raises.
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
        """Whether the environment gets `action` from the text of a completion."""
        return self.prompter.read(text, True, {"admissible": None})[0] == action

    def _can_write(self, action: str) -> bool:
        """Whether form and tokenizer give an action back unchanged."""
        said = SLOT.sub("a", action)
        text = self.tokenizer.decode(encode(self.tokenizer, written(self.prompter, said)), skip_special_tokens=False)
        return self._reads(f"{self._opening}{text}", said)

    def _split_action(self, action: str) -> tuple[str, tuple[int, ...], str, list[str]]:
        """The parts of an action that are added to a tree.

        Returns the beginning of the action that the last token of the head contains, the ids after that token up to the
        first slot, the text after the head up to the first slot, and the texts after the slots.
        """
        first, *others = self.pieces(action)
        return *self.after_head(first), plain(first)[len(self.head) :], others

    def pieces(self, action: str) -> list[str]:
        """The text of an action, split at its slots. The action is quoted, the prompter's own text is not."""
        return _MARKED.split(written(self.prompter, SLOT.sub(_MARK, action)))

    def after_head(self, text: str) -> tuple[str, tuple[int, ...]]:
        """The text after the head in the last token of the head, and the ids of `text` after that token."""
        ids, count = encode(self.tokenizer, text), 0
        while not (said := self.tokenizer.decode(ids[:count])).startswith(self.head):
            if count == len(ids):
                raise ValueError(f"the tokenizer does not give {self.head!r} back, which stands before each action")
            count += 1
        return said[len(self.head) :], ids[count:]

    def beyond_head(self, ids: Sequence[int]) -> str | None:
        """The text after the head, if the last of `ids` completes it; otherwise None."""
        # A token has at least one byte, so the head has at most as many tokens as bytes.
        head = self.head.lower()  # parsers of tags take either case
        if head not in self.tokenizer.decode(ids[-len(self.head.encode()) :]).lower():
            return None
        text = self.tokenizer.decode(ids)
        place = text.lower().rindex(head) + len(head)
        # In the middle of reasoning the head is ordinary text: an action would not be read there.
        return text[place:] if self._reads(f"{text[:place]}{_MARK}{self.tail}", _MARK) else None

    def closing(self, text: str) -> tuple[int, ...]:
        """The ids of `text` behind a slot."""
        said, whole = encode(self.tokenizer, "a"), encode(self.tokenizer, f"a{text}")
        return whole[len(said) :] if whole[: len(said)] == said else encode(self.tokenizer, text)


@lru_cache(maxsize=8)
def _free_ids(tokenizer: Any, size: int, refused: frozenset[str]) -> NDArray[np.bool_]:
    """[V] the ids that free text may have: no control tokens, and none with one of the `refused` characters."""
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
    """A `PolicyAgent` that writes token by token, and only one of `info["admissible"]`.

    An episode ends when its longest action no longer fits into the context (`context_limit`).
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
        """How its actions are written; known after the first prompt."""
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
