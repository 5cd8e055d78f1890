"""Measure the log-probability of the right answer before each turn. IGPO computes the reward of a turn from it.

The prompt of each turn is extended by `thought` and the right answer in the agent's form, and the policy computes how
likely that answer is. TRACE (arXiv 2607.13988, after its abstract) asks the frozen initial policy instead (`model`):

    <think>
    Now there's enough information to answer
    </think>
    <action>answer[green]</action>

The signal is the mean log-probability of the tokens that hold a character of "green". Nothing is sampled.

Wang et al., *Information Gain-based Policy Optimization*, arXiv 2510.14967 (ICLR 2026); sentence and spans are those of
the authors' code of February 2026. It takes the first of several right answers; here the likeliest one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agents.parsing import THINK_CLOSE, THINK_OPEN
from agents.policies.base import Policy
from agents.quoting import encode_with_offsets, quote
from agents.samples import Sample
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal
from envs.core import Need, UnknownNameError

if TYPE_CHECKING:  # see `algorithms.signals.base`
    from torch import Tensor

    from algorithms.batches import Batch

MODELS = ("policy", "first")
PLACE = "{answer}"
THOUGHT = f"{THINK_OPEN}\nNow there's enough information to answer\n{THINK_CLOSE}\n"


class AnswerGain(UntrainedSignal):
    """Signal `answer_logprob`: one forward pass over the prompts of all turns, each with every right answer.

    NaN if an episode has no answers, or if prompt and answer exceed the policy's context.
    """

    needs = frozenset({Need.ANSWERS})
    gives = ("answer_logprob",)
    gives_tokens = ()

    def __init__(
        self, context: SignalContext, *, action: str = f"answer[{PLACE}]", thought: str | None = None,
        model: str = "policy",
    ) -> None:  # fmt: skip
        """`action` is the form of an answer in the environment, and `thought` the text before it.

        `thought=None` means IGPO's sentence if the model has a chat template, otherwise no text. `model` is the model
        that is measured: "policy", or "first", the weights at the start of the run. Raises `ValueError`.
        """
        if model not in MODELS:
            raise UnknownNameError("model", model, MODELS)
        self.first: Any = None
        if model == "first":
            from agents.policies.weights import copy_trained

            self.first = copy_trained(context.model).requires_grad_(False)
            context.parallel.place(self.first, context.dtype)
        tokenizer = context.agent.policy.tokenizer
        if thought is None:
            thought = THOUGHT if tokenizer.chat_template else ""
        form = thought + context.agent.prompter.write(action)
        if form.count(PLACE) != 1:
            raise ValueError(f"action and thought together need exactly one {PLACE} for the answer; got {form!r}")
        if not tokenizer.is_fast:
            raise ValueError(f"answer_gain needs a fast tokenizer, which has offsets; got {type(tokenizer).__name__}")
        self.context, self.tokenizer = context, tokenizer
        self.before, self.after = form.split(PLACE)

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        """Raises `ValueError` naming the environment if no episode has right answers."""
        from algorithms.batches import map_samples, sampled_logprobs

        context = self.context
        if not any(episode.answers for episode in rollouts.episodes):
            env = rollouts.episodes[0].task.env
            raise ValueError(f"{env} has no right answers: this method needs info['answers'], as in env=search")
        asked, rows = self._answer_samples(rollouts, context.agent.policy)

        def logprobs(batch: Batch) -> Tensor:
            return sampled_logprobs(self.first or context.model, batch, 1.0, context.dtype)[0]

        # Attempts at a task begin with the same prompt and often go on alike, so each sequence is computed once.
        keys = [(*sample.ids, sum(sample.mask)) for sample in asked]
        distinct = dict(zip(keys, asked, strict=True))
        place = {key: number for number, key in enumerate(distinct)}
        samples = list(distinct.values())
        logprobs_of_ids = map_samples(samples, context.micro_batch_tokens, context.device, logprobs, context.parallel)
        belief = np.full(len(rollouts.table), np.nan)
        np.fmax.at(belief, rows, sample_means(samples, logprobs_of_ids)[[place[key] for key in keys]])
        tokens = sum(len(sample.ids) for sample in samples)  # tokens read, the cost of the signal
        known = belief[np.isfinite(belief)]
        metrics = {"signal/answer_measured": len(known) / len(belief), "signal/answer_tokens": float(tokens)}
        if len(known):
            metrics["signal/answer_logprob"] = float(known.mean())
        return Measurement({"answer_logprob": belief}, metrics=metrics)

    def state(self) -> dict[str, Any]:
        if self.first is None:
            return {}
        from agents.policies.sharded import whole_state

        return {"first": whole_state(self.first)}

    def load_state(self, state: dict[str, Any]) -> None:
        if self.first is not None:
            from agents.policies.sharded import load_whole_state

            load_whole_state(self.first, state["first"])

    def _answer_samples(self, rollouts: RolloutBatch, policy: Policy) -> tuple[list[Sample], NDArray[np.int64]]:
        """A sequence for each turn and answer, with the answer's ids as "sampled" ids, and the row of its turn."""
        asked, rows = [], []
        row = 0
        for episode in rollouts.episodes:
            for turn in episode.turns:
                for answer in episode.answers or ():
                    sample = self._answer(turn.prompt_ids, answer)
                    if len(sample.ids) <= policy.context_length:
                        asked.append(sample)
                        rows.append(row)
                row += 1
        return asked, np.array(rows, dtype=np.int64)

    def _answer(self, prompt: Sequence[int], answer: str) -> Sample:
        """The ids up to the end of the answer."""
        before = self.before
        tail = self.tokenizer.decode(prompt[-8:])
        if tail.rstrip().endswith(THINK_OPEN):  # the chat template has opened the reasoning
            before = before.removeprefix(THINK_OPEN)
            before = before.removeprefix(tail[len(tail.rstrip()) :])
        ids, offsets = encode_with_offsets(self.tokenizer, before + quote(answer) + self.after)
        first, last = answer_span(offsets, len(before), len(before) + len(answer))
        sample = Sample()
        sample.extend([*prompt, *ids[:first]])
        sample.extend(ids[first:last], [0.0] * (last - first), 0)
        return sample


def answer_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The first token that holds a character of text[start:end], and the token after the last. Raises `ValueError`.

    A token that also holds neighbouring characters counts: " green" is one token in "answer: green".
    """
    inside = [number for number, (a, b) in enumerate(offsets) if a < end and b > start]
    if not inside:
        raise ValueError(f"no token holds the characters {start} to {end} of {offsets}; the answer may be empty")
    return inside[0], inside[-1] + 1


def sample_means(samples: Sequence[Sample], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[S] the mean of `values` over each sample's sampled ids; `values` lists them sample after sample."""
    counts = np.array([sum(sample.mask) for sample in samples], dtype=np.int64)
    sums = np.bincount(np.repeat(np.arange(len(samples)), counts), weights=values, minlength=len(samples))
    means: NDArray[np.float64] = sums / counts
    return means
