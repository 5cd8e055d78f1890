"""A language model reads whole episodes and lists the wrong turns (CAPO: Xie et al., arXiv 2508.02298).

It reads each episode several times, and the critiques vote. It is not trained: it is a model behind an endpoint
(`agents.endpoint.Endpoint`) or on this machine (`LocalModel`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.agent import may_fit
from agents.episode import Episode
from agents.parsing import answer_part, json_objects
from agents.policies.base import Request, Sampling, Usage
from agents.policies.names import find_parts
from agents.prompts import message_ids, read_template
from agents.quoting import quote
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal
from envs.core import UnknownNameError

if TYPE_CHECKING:  # see `algorithms.signals.base`
    from agents.policies.pretrained import Pretrained

logger = logging.getLogger(__name__)

VOTES = ("majority", "intersection", "average")


class Model(Protocol):
    """The model that a judge uses."""

    usage: Usage

    def check(self) -> None:
        """Raise if the model cannot answer."""

    def answers(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> list[str | None]:
        """The answer to each prompt, or None if it was cut off or the prompt was too long."""


class LocalModel:
    """The model called `name` (see `agents.policies.names`), with `batch_size` prompts at a time."""

    def __init__(self, name: str, *, batch_size: int = 8, pretrained: Pretrained | None = None) -> None:
        """`pretrained` says how the model is loaded."""
        find_parts(name)  # before the next import, which takes seconds
        from agents.policies.pretrained import Pretrained

        self.policy = (pretrained or Pretrained()).load(name)
        self.name, self.batch_size, self.usage = name, batch_size, Usage()

    def check(self) -> None:
        """Nothing to check: the model was loaded."""

    def answers(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> list[str | None]:
        """See `Model`. The same seed gives the same answers. A prompt that leaves no room gets None, which is logged.

        Raises `ValueError` if this is true for all prompts.
        """
        import torch

        generator = torch.Generator(self.policy.device).manual_seed(seed)
        tokenizer = self.policy.tokenizer
        requests = [
            Request(number, ids) for number, prompt in enumerate(prompts) if (ids := self._encode(prompt)) is not None
        ]
        if prompts and not requests:
            raise ValueError(
                f"none of the judge's {len(prompts)} prompts leaves room for an answer in the "
                f"{self.policy.context_length} ids of {self.name}; use a model with a longer context"
            )
        if len(requests) < len(prompts):
            logger.warning(
                "%d of the judge's %d prompts do not fit into the %d ids of %s, so they have no answer",
                len(prompts) - len(requests), len(prompts), self.policy.context_length, self.name,
            )  # fmt: skip
        answers: list[str | None] = [None] * len(prompts)
        for start in range(0, len(requests), self.batch_size):
            part = requests[start : start + self.batch_size]
            for request, done in zip(part, self.policy.generate(part, sampling, generator), strict=True):
                answers[request.session] = tokenizer.decode(done.text_ids) if done.finished else None
                self.usage.requests += 1
                self.usage.prompt_tokens += len(request.prompt_ids)
                self.usage.completion_tokens += len(done.ids)
                self.policy.release(request.session)
        self.policy.pause()
        return answers

    def _encode(self, prompt: str) -> list[int] | None:
        tokenizer, limit = self.policy.tokenizer, self.policy.context_length - 1
        if not may_fit(tokenizer, len(prompt), limit):
            return None
        ids = message_ids(tokenizer, quote(prompt), around=False)
        return ids if len(ids) <= limit else None


class Judge(UntrainedSignal):
    """Signal `prm` [N]: `right`, or `wrong` for turns that the critiques of their episode vote to be wrong.

    With the vote "majority" a turn is wrong if more than half of the readable critiques name it, with "intersection" if
    all of them do. With "average" it gets the share of `wrong` of the critiques that name it. CAPO's values are 0 and
    -1; PURE uses 1 and -1 with "average".

    A critique is unreadable if it was cut off, had no room, contains no list of turns, or names a turn that was not
    played. It is counted (`signal/judge_malformed`) and has no vote. An episode without any readable critique has only
    `right` turns, so they share the credit of its outcome; it is counted too (`signal/judge_unread`). If an endpoint
    does not answer, the run ends.
    """

    gives = ("prm",)
    gives_tokens = ()
    by_first_rank = True

    def __init__(
        self,
        context: SignalContext,
        *,
        model: Model,
        sampling: Sampling,
        critiques: int = 4,
        vote: str = "majority",
        right: float = 0.0,
        wrong: float = -1.0,
        template: str = "judge",
    ) -> None:
        """`template` names a file of `algorithms/signals/templates`; the file sees `goal`, `turns` (each with its
        `observation` and `action`), `final_observation` and `success`. `critiques` is the number for each episode.
        """
        if vote not in VOTES:
            raise UnknownNameError("vote", vote, VOTES)
        if critiques < 1:
            raise ValueError(f"critiques must be at least 1, got {critiques}")
        self.template = read_template(
            "judge's prompt", resources.files("algorithms") / "signals" / "templates", template
        )
        self.model, self.sampling, self.critiques, self.vote = model, sampling, critiques, vote
        self.right, self.wrong, self.seed = right, wrong, context.seed
        self.batches = 0  # number of batches so far; each has its own random draws

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> None:
        """Raises the model's error if it cannot be used."""
        settings["model"].check()

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        before = replace(self.model.usage)
        episodes = [episode for episode in rollouts.episodes if episode.turns]
        prompts = [self._prompt(episode) for episode in episodes for _ in range(self.critiques)]
        answers = self.model.answers(prompts, self.sampling, self.seed + 1_000_003 * self.batches)
        self.batches += 1
        shares, malformed, unread = [], 0, 0
        for number, episode in enumerate(episodes):
            critiques = answers[number * self.critiques : (number + 1) * self.critiques]
            readable = [turns for text in critiques if (turns := wrong_turns(text, len(episode.turns))) is not None]
            malformed += self.critiques - len(readable)
            unread += not readable
            shares.append(combine_votes(readable, len(episode.turns), self.vote))
        share = np.concatenate(shares)
        metrics = {
            "signal/judge_wrong": float(share.mean()),
            "signal/judge_malformed": float(malformed),
            "signal/judge_unread": float(unread),
            **_spent(before, self.model.usage),
        }
        return Measurement({"prm": self.right + (self.wrong - self.right) * share}, metrics=metrics)

    def _prompt(self, episode: Episode) -> str:
        return self.template.render(
            goal=episode.goal,
            turns=episode.turns,
            final_observation=episode.final_observation,
            success=episode.success,
        )

    def state(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]


def wrong_turns(text: str | None, count: int) -> set[int] | None:
    """The turns, from 0, that a critique calls wrong in an episode of `count` turns; None if it is unreadable.

    They are a list of numbers from 1 in the last JSON object with the key "wrong" after the reasoning.
    """
    answer = None if text is None else answer_part(text)
    lists = [found["wrong"] for found in json_objects(answer or "") if "wrong" in found]
    if not lists or not isinstance(lists[-1], list):
        return None
    if not all(type(number) is int and 1 <= number <= count for number in lists[-1]):
        return None
    return {number - 1 for number in lists[-1]}


def combine_votes(critiques: Sequence[set[int]], count: int, vote: str) -> NDArray[np.float64]:
    """[count] how wrong each turn is, from 0 to 1, given the turns that each critique names; 0 without critiques."""
    votes = np.zeros(count)
    for named in critiques:
        votes[sorted(named)] += 1
    if not critiques or vote == "average":
        return votes / max(len(critiques), 1)
    agreed = 2 * votes > len(critiques) if vote == "majority" else votes == len(critiques)
    return agreed.astype(np.float64)


def _spent(before: Usage, after: Usage) -> dict[str, float]:
    """The usage of one batch."""
    spent = {
        "signal/judge_requests": float(after.requests - before.requests),
        "signal/judge_prompt_tokens": float(after.prompt_tokens - before.prompt_tokens),
        "signal/judge_completion_tokens": float(after.completion_tokens - before.completion_tokens),
    }
    if after.cost is not None and before.cost is not None:
        spent["signal/judge_cost"] = after.cost - before.cost
    return spent
