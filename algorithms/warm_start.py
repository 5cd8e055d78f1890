"""Warm start: behaviour cloning of a scripted expert before reinforcement learning.

After it, a small policy solves some of the tasks.

The expert plays episodes in which a share of its actions (`noise`) is replaced by actions that the environment refuses.
The expert sees the result, and the target of every turn is the action that it would play. Without noise, a cloned
policy never sees a refusal, and repeats a refused action until the episode ends. Refused actions change nothing, so the
policy does not have to learn how to undo them.

A lesson is one episode as one sequence. If the played action is not the expert's, the ids are those of the played
action. The target of the first id that differs is the expert's id, and the rest of the action has no target.
Observations are targets too, with a smaller weight: predicting their names teaches the policy to copy names.

With `masked`, an action is cloned as a `MaskedAgent` samples it: by the cross-entropy of the masked distribution. The
same ids are also targets among the whole vocabulary, with the weight `text_weight`. The mask allows few alternatives,
and a policy learns sooner which thing a goal names if it has to choose among all names. A mask allows no refused
actions, so the replaced actions are other admissible ones.

Left out: corrections of the policy's own episodes (DAgger, arXiv 1011.0686). Rounds of it, at a tenth of the learning
rate and with as many demonstrations beside them, lowered the success of a policy that solved a quarter of the games.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from agents.agent import Agent, Decision, View, prompt_within
from agents.episode import Episode
from agents.masking import ActionForm, Node
from agents.parsing import has_slot
from agents.policies.local import LocalPolicy
from agents.policies.models import causal_states, head_logits, masked_logits
from agents.policies.tiny import SharedWords
from agents.policies.weights import train_in_float32
from agents.prompts import Prompter
from agents.rollout import Job, check_environment, rollout
from agents.samples import Sample, build_samples
from agents.scripted import ExpertAgent, RandomAgent
from algorithms.finite import FiniteSteps, LossPart
from algorithms.muon import Muon
from envs.core import Expert, Task, TaskSet
from envs.pool import EnvPool

logger = logging.getLogger(__name__)

REFUSED_TRIES = 20  # draws for an action that is not admissible
NO_TARGET = -100  # the index that torch.nn.functional.cross_entropy skips


class Progress(Protocol):
    """Receives the progress of a long computation."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Start a phase of `total` parts, if their number is known."""

    def advance(self, status: str = "") -> None:
        """Report that one part of the phase is done."""


@dataclass(frozen=True)
class WarmStart:
    """How much to clone."""

    episodes: int  # played by the expert
    noise: float  # share of the expert's actions that are replaced
    steps: int  # optimiser steps
    tokens_per_step: int
    max_turns: int  # of a demonstration
    matrix_lr: float | None  # Muon, for the hidden matrices; None: AdamW for them too
    other_lr: float  # AdamW, for embeddings and norms
    observation_weight: float = 0.1
    text_weight: float = 0.5  # of an action among all texts; its weight among the admissible actions is 1
    observation_share: float = 1.0  # of observed ids that are targets, drawn at each step: fewer are faster

    def __post_init__(self) -> None:
        if not 0 <= self.noise < 1:
            raise ValueError(f"warm_start.noise must be in [0, 1), got {self.noise}")
        if not 0 <= self.observation_share <= 1:
            raise ValueError(f"warm_start.observation_share must be in [0, 1], got {self.observation_share}")
        if self.episodes < 1 or self.steps < 1:
            raise ValueError("warm_start.episodes and warm_start.steps must be at least 1; warm_start=null skips it")


@dataclass(frozen=True)
class Lesson:
    """One sequence of L ids with weighted targets: `targets[i]` should follow `ids[:i]`."""

    ids: list[int]  # [L]
    targets: list[int]  # [L], NO_TARGET where there is none
    weights: list[float]  # [L]
    origin: str = ""  # its episode, for messages
    nodes: list[Node | None] = field(default_factory=list)  # as in `agents.samples.Sample`

    @property
    def teaches(self) -> bool:
        """Whether it has a target. The first id follows nothing, so it is not a target."""
        pairs = zip(self.targets[1:], self.weights[1:], strict=True)
        return any(target != NO_TARGET and weight > 0 for target, weight in pairs)


def make_lesson(sample: Sample, wanted: Sequence[Sequence[int]], observation_weight: float) -> Lesson:
    """The lesson of a sample. `wanted[row]` are the ids of the expert's action at turn `row`."""
    targets, weights = list(sample.ids), [observation_weight] * len(sample.ids)
    nodes = sample.nodes or [None] * len(sample.ids)
    start = 0
    for i, row in enumerate(sample.turn):
        if row < 0:
            start = i + 1
            continue
        want, offset = wanted[row], i - start
        followed = list(want[:offset]) == sample.ids[start:i]  # played and wanted ids are equal so far
        forced = (node := nodes[i]) is not None and node.forced is not None
        targets[i] = want[offset] if followed and offset < len(want) else NO_TARGET
        if not forced:
            weights[i] = 1.0
        if i + 1 < len(sample.turn) and sample.turn[i + 1] != row:
            start = i + 1
    return Lesson(sample.ids, targets, weights, sample.origin, sample.nodes)


class Demonstrator:
    """An agent that plays demonstrations. `wanted` has the ids of the teacher's action at each turn.

    It plays the teacher's action, or with probability `noise` an action that is not admissible now, but was admissible
    earlier in this or another episode. There is none if the environment does not list admissible actions, or if they
    never change. With `masked` it plays another admissible action instead. An action of the teacher that the mask does
    not allow is played, but is not a target.

    An episode ends when prompt and action exceed the context of the policy.
    """

    def __init__(
        self,
        teacher: Agent,
        prompter: Prompter,
        tokenizer: Any,
        noise: float,
        seed: int,
        masked: bool = False,
        context_length: int = sys.maxsize,
    ) -> None:
        self.teacher, self.prompter, self.tokenizer, self.noise = teacher, prompter, tokenizer, noise
        self.form = ActionForm(prompter, tokenizer) if masked else None
        self.context_length = context_length
        self.too_long = 0  # episodes that exceeded the context
        self.rng = np.random.default_rng(seed)
        self.wanted: dict[int, list[list[int]]] = {}  # key of the episode -> ids wanted at each turn
        self._admissible: dict[int, list[str]] = {}  # key of the episode -> what was admissible at each turn
        self._known_actions: list[str] = []  # all actions that were admissible in any episode

    def act(self, views: Sequence[View]) -> list[Decision]:
        """The teacher's actions, some of them replaced."""
        wants = self.teacher.act(views)
        return [
            want if want.status is None else self._demonstrate(view, want.action)
            for view, want in zip(views, wants, strict=True)
        ]

    def _demonstrate(self, view: View, want: str) -> Decision:
        admissible = view.info["admissible"] or []
        prompt = prompt_within(
            self.context_length, self.prompter, self.tokenizer, view.episode.turns, view.observation, view.info
        )
        if prompt is None:
            return self._end()
        wanted, on_path = self._write(want, admissible)
        self.wanted.setdefault(view.key, []).append([] if on_path is None else wanted)
        self._admissible.setdefault(view.key, []).extend(admissible)
        self._known_actions.extend(admissible)
        draw = self._draw_refused if self.form is None else self._draw_admissible
        other = draw(view.key, admissible) if self.rng.random() < self.noise else None
        action = want if other is None else other
        ids, nodes = (wanted, on_path) if other is None else self._write(other, admissible)
        if len(prompt) + len(ids) > self.context_length:
            return self._end()
        return Decision(action, prompt_ids=prompt, completion_ids=ids, logprobs=[0.0] * len(ids), nodes=nodes or [])

    def _end(self) -> Decision:
        self.too_long += 1
        return Decision("", None)

    def _write(self, action: str, admissible: Sequence[str]) -> tuple[list[int], list[Node] | None]:
        """The completion that writes `action`, and its nodes; None if the mask has no path for it."""
        if self.form is None:
            return self.prompter.action_ids(self.tokenizer, action), []
        ids = self.form.action_ids(action, admissible)
        try:
            return ids, self.form.mask(admissible).path(ids)
        except ValueError:
            return ids, None

    def _draw_admissible(self, key: int, admissible: Sequence[str]) -> str | None:  # noqa: ARG002
        """An admissible action without a slot; None if there is none."""
        whole = [action for action in admissible if not has_slot(action)]
        return whole[self.rng.integers(len(whole))] if whole else None

    def _draw_refused(self, key: int, admissible: Sequence[str]) -> str | None:
        """An action that the environment refuses now; None if none is found."""
        seen = self._admissible[key] if self.rng.random() < 0.5 else self._known_actions
        draws = self.rng.integers(len(seen), size=REFUSED_TRIES) if seen else ()
        return next((seen[i] for i in draws if seen[i] not in admissible), None)

    def finish(self, key: int) -> None:
        self._admissible.pop(key, None)
        self.teacher.finish(key)

    def forget(self) -> None:
        """Delete what is stored for the played episodes. `lessons` must be called before."""
        self.wanted.clear()
        self._admissible.clear()
        self._known_actions.clear()

    def lessons(self, episodes: Sequence[Episode], observation_weight: float) -> list[Lesson]:
        """One lesson for each sequence of the episodes, which were played by this agent in one rollout."""
        wanted = [ids for key, episode in enumerate(episodes) for ids in self.wanted.get(key, [])[: len(episode.turns)]]
        return [make_lesson(sample, wanted, observation_weight) for sample in build_samples(episodes)]


class Cloner:
    """Minimises the cross-entropy of lessons: Muon for the hidden matrices, AdamW for other weights, or for all."""

    def __init__(
        self, model: Any, config: WarmStart, rng: np.random.Generator, words: SharedWords | None = None
    ) -> None:
        """`words` are the shared parts of the model's embedding, which are trained too."""
        train_in_float32(model)
        self.model, self.config, self.rng = model, config, rng
        (self.choice,) = rng.spawn(1)  # for the choice of targets; the order of lessons does not depend on it
        embedding = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim == 2 and id(p) not in embedding and config.matrix_lr is not None]
        hidden = {id(p) for p in matrices}
        others = [p for p in trained if id(p) not in hidden]
        self.optimizers: list[torch.optim.Optimizer] = []
        if others:  # the weights of adapters are all matrices
            self.optimizers.append(torch.optim.AdamW(others, lr=config.other_lr, betas=(0.9, 0.95), weight_decay=0.0))
            if words is not None:
                words.follow(self.optimizers[0])
        if config.matrix_lr is not None:
            self.optimizers.append(Muon(matrices, config.matrix_lr))
        self.steps = FiniteSteps("warm start")
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, self._rate) for o in self.optimizers]

    def _rate(self, step: int) -> float:
        """Rises over 20 steps, stays constant, and falls to a tenth over the second half."""
        return min(1.0, (step + 1) / 20, max(0.1, 2.0 * (1 - step / self.config.steps)))

    def run(self, lessons: Sequence[Lesson], progress: Progress) -> None:
        """Take all steps on random batches, and report the loss and the share of right action ids.

        Each lesson needs a target.
        """
        batches: list[list[Lesson]] = []
        for _ in range(self.config.steps):
            batches = batches or self._shuffled(lessons)
            loss, accuracy = self._learn(batches.pop())
            progress.advance(f"loss {loss:.2f}, {accuracy:.0%} of action tokens right")

    def _shuffled(self, lessons: Sequence[Lesson]) -> list[list[Lesson]]:
        """One pass over the lessons in batches of `tokens_per_step` padded tokens, each of similar lengths."""
        # Lengths with noise: a batch has similar lengths, and other lessons in every pass.
        keys = np.array([len(lesson.ids) for lesson in lessons]) * self.rng.uniform(0.8, 1.25, len(lessons))
        batches: list[list[Lesson]] = [[]]
        width = 0
        for i in np.argsort(keys, kind="stable"):
            width = max(width, len(lessons[i].ids))
            if batches[-1] and width * (len(batches[-1]) + 1) > self.config.tokens_per_step:
                batches.append([])
                width = len(lessons[i].ids)
            batches[-1].append(lessons[i])
        return [batches[i] for i in self.rng.permutation(len(batches))]

    def _learn(self, batch: Sequence[Lesson]) -> tuple[float, float]:
        """One optimiser step, skipped if it is not finite. Returns the loss and the share of right action ids."""
        loss, accuracy = self._loss(batch, self.config.observation_share)
        loss.backward()  # type: ignore[no-untyped-call]

        def own_loss(lesson: Lesson) -> Tensor:
            return self._loss([lesson], 1.0)[0]

        loss_parts: list[LossPart] = [(lesson.origin, partial(own_loss, lesson)) for lesson in batch]
        value = float(loss.detach())
        self.steps.take(self.model.parameters(), self.optimizers, 1.0, value, loss_parts)
        for schedule in self.schedules:
            schedule.step()
        return value, accuracy

    def _loss(self, batch: Sequence[Lesson], observation_share: float) -> tuple[Tensor, float]:
        device = next(self.model.parameters()).device
        width = max(len(lesson.ids) for lesson in batch)

        def padded(rows: list[list[Any]], fill: float) -> Tensor:
            return torch.tensor([[*row, *([fill] * (width - len(row)))] for row in rows], device=device)

        ids = padded([lesson.ids for lesson in batch], 0)
        targets = padded([lesson.targets for lesson in batch], NO_TARGET)[:, 1:]  # (B, L - 1)
        weights = padded([lesson.weights for lesson in batch], 0.0)[:, 1:] * (targets != NO_TARGET)
        chosen = torch.from_numpy(self.choice.random(targets.shape) < observation_share).to(device)
        chosen |= weights == 1.0
        targets, weights = targets[chosen], weights[chosen]  # (N,)
        states = causal_states(self.model, ids[:, :-1])[chosen]  # (N, E)
        logits = head_logits(self.model, states)  # (N, V): the slowest part with many words
        cross_entropy = partial(torch.nn.functional.cross_entropy, reduction="none")
        losses = cross_entropy(logits, targets) * weights
        acts, nodes = weights == 1.0, []
        if any(lesson.nodes for lesson in batch):
            places = zip(*(place.tolist() for place in chosen.nonzero(as_tuple=True)), strict=True)
            found = [batch[row].nodes[i + 1] if i + 1 < len(batch[row].nodes) else None for row, i in places]
            # The weight of text may equal that of an action, so ids chosen under a mask are found by their nodes.
            choices = [node is not None and node.forced is None for node in found]
            acts &= torch.tensor(choices, dtype=torch.bool, device=device)
            nodes = [node for node, act in zip(found, acts.tolist(), strict=True) if act]
        logits, targets = logits[acts], targets[acts]
        if nodes:
            logits = masked_logits(logits, nodes)
            losses[acts] = losses[acts] * self.config.text_weight + cross_entropy(logits, targets)
        right = (logits.argmax(-1) == targets).float()
        # A batch may have no actions, and no observation's id that was drawn.
        return losses.sum() / weights.sum().clamp(min=1e-6), float(right.mean()) if len(right) else 1.0


def teacher_of(task_set: TaskSet) -> Agent:
    """The task set's expert as an agent; without one, random admissible actions, which teach their form."""
    if task_set.expert() is not None:
        return ExpertAgent(cast(Callable[[], Expert], task_set.expert))
    return RandomAgent()


def warm_start(
    policy: LocalPolicy,
    prompter: Prompter,
    task_set: TaskSet,
    tasks: Sequence[Task],
    pool: EnvPool,
    config: WarmStart,
    seed: int,
    progress: Progress,
    *,
    masked: bool = False,
    words: SharedWords | None = None,
) -> None:
    """Clone the teacher of `task_set` into the policy's model, in place. The same arguments give the same weights.

    `masked` clones for a `MaskedAgent`. `words` are the shared parts of the model's embedding, if it has any.
    """
    if task_set.expert() is None:
        logger.warning("%s has no expert: the warm start clones random admissible actions", task_set.env_id)
    rng = np.random.default_rng(seed)
    teacher, context = teacher_of(task_set), policy.context_length
    demonstrator = Demonstrator(teacher, prompter, policy.tokenizer, config.noise, seed, masked, context)
    solved: list[bool] = []

    def report(episode: Episode) -> None:
        solved.append(episode.success)
        progress.advance(f"{np.mean(solved):.0%} solved")

    order = rng.permutation(max(config.episodes, len(tasks)))[: config.episodes]
    jobs = [Job(tasks[i % len(tasks)], number, tasks[i % len(tasks)].seed) for number, i in enumerate(order)]
    progress.phase("play demonstrations", len(jobs))
    episodes = rollout(demonstrator, pool, jobs, max_turns=config.max_turns, on_episode=report)
    check_environment(episodes)
    if demonstrator.too_long:
        logger.warning(
            "%d of %d demonstrations ended early: their next turn does not fit into the %d ids of the policy's context",
            demonstrator.too_long, len(episodes), context,
        )  # fmt: skip
    lessons = demonstrator.lessons(episodes, config.observation_weight)
    if not lessons:
        raise RuntimeError(f"there is nothing to clone: not one turn was played in {len(episodes)} demonstrations")
    taught = [lesson for lesson in lessons if lesson.teaches]
    if not taught:
        raise RuntimeError(
            f"there is nothing to clone in {len(lessons)} sequences of demonstrations: the teacher never had a choice "
            "between actions, or wanted none that the policy can write, and warm_start.observation_weight is "
            f"{config.observation_weight:g}. Set it above 0, or skip the warm start by warm_start=null"
        )
    if len(taught) < len(lessons):
        logger.warning(
            "%d of %d sequences of demonstrations are left out of the warm start: nothing in them is a target",
            len(lessons) - len(taught), len(lessons),
        )  # fmt: skip
    progress.phase("clone them", config.steps)
    Cloner(policy.model, config, rng, words).run(taught, progress)
    policy.pause()
