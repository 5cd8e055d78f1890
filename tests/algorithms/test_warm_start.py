"""The targets of a turn in which another action than the expert's was played."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.agent import Decision, View
from agents.episode import Episode
from agents.masking import MaskedAgent
from agents.policies.base import Sampling
from agents.policies.local import LocalPolicy
from agents.policies.lora import Lora
from agents.policies.models import next_token_logits
from agents.policies.pretrained import Pretrained
from agents.prompts import Transcript
from agents.rollout import Job, rollout
from agents.samples import Sample
from algorithms.checkpoint import save_checkpoint
from algorithms.warm_start import (
    NO_TARGET,
    Cloner,
    Demonstrator,
    Lesson,
    WarmStart,
    make_lesson,
    teacher_of,
    warm_start,
)
from envs.core import Info
from envs.pool import EnvPool
from tests.agents.corridors import ACTIONS, Corridor, Corridors, corridor
from tests.agents.toys import random_policy
from tests.algorithms.test_trainer import Quiet

# observation [7, 8], played [3, 4, 1], observation [9], played [5, 1]
CLONE = WarmStart(episodes=4, noise=0.0, steps=2, tokens_per_step=256, max_turns=12, matrix_lr=None, other_lr=0.003)
SAMPLE = Sample(
    ids=[7, 8, 3, 4, 1, 9, 5, 1],
    mask=[False, False, True, True, True, False, True, True],
    logprobs=[0.0] * 8,
    turn=[-1, -1, 0, 0, 0, -1, 1, 1],
)


def test_an_expert_action_that_was_played_is_its_own_target() -> None:
    lesson = make_lesson(SAMPLE, [[3, 4, 1], [5, 1]], 0.5)
    assert lesson.targets == lesson.ids == SAMPLE.ids
    assert lesson.weights == [0.5, 0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0]


def test_the_first_id_that_differs_is_taught_and_the_rest_is_not() -> None:
    lesson = make_lesson(SAMPLE, [[3, 6, 6, 1], [2, 2, 1]], 0.5)
    assert lesson.targets == [7, 8, 3, 6, NO_TARGET, 9, 2, NO_TARGET]
    assert lesson.ids == SAMPLE.ids


def test_a_wanted_action_that_is_shorter_ends_where_it_should() -> None:
    assert make_lesson(SAMPLE, [[3, 1], [5, 1]], 0.5).targets == [7, 8, 3, 1, NO_TARGET, 9, 5, 1]


def test_adjacent_turns_are_distinguished() -> None:
    touching = Sample(ids=[7, 3, 4], mask=[False, True, True], logprobs=[0.0] * 3, turn=[-1, 0, 1])
    assert make_lesson(touching, [[3], [6]], 0.5).targets == [7, 3, 6]


class GoesRight:
    """A teacher that always walks right."""

    def act(self, views: Sequence[View]) -> list[Decision]:
        return [Decision("go right") for _ in views]

    def finish(self, key: int) -> None: ...


def demonstrate(noise: float, admissible: Sequence[Sequence[str]], turns: int = 400) -> list[tuple[str, Sequence[str]]]:
    """What is played, and what was admissible then, where the admissible actions change at every turn."""
    demonstrator = Demonstrator(GoesRight(), Transcript(), random_policy().tokenizer, noise, seed=3)
    played = []
    for turn in range(turns):
        known = admissible[turn % len(admissible)]
        view = View(0, Episode(corridor(), 0), "You are in room 1.", {"admissible": list(known)})
        played.append((demonstrator.act([view])[0].action, known))
    return played


def test_noise_is_refused() -> None:
    rooms = [["go right", "open door 1"], ["go right", "go left"], ["go right"]]
    played = demonstrate(0.1, rooms)
    refused = [action not in known for action, known in played]
    assert all(action == "go right" for (action, _), no in zip(played, refused, strict=True) if not no)
    assert {action for (action, _), no in zip(played, refused, strict=True) if no} == {"open door 1", "go left"}
    assert 0.05 < np.mean(refused) < 0.15


def test_there_is_no_noise_if_every_action_is_admissible() -> None:
    assert {action for action, _ in demonstrate(0.9, [["go right", "go left"]])} == {"go right"}
    assert {action for action, _ in demonstrate(0.9, [[]])} == {"go right"}


def masked_lessons(noise: float, observation_weight: float = 0.5) -> tuple[LocalPolicy, list[Episode], list[Lesson]]:
    policy = random_policy()
    demonstrator = Demonstrator(teacher_of(Corridors()), Transcript(), policy.tokenizer, noise, 5, masked=True)
    with EnvPool(Corridors().make, 4) as pool:
        episodes = rollout(demonstrator, pool, [Job(corridor(2 + i % 3), i) for i in range(30)])
    return policy, episodes, demonstrator.lessons(episodes, observation_weight)


def test_under_a_mask_noise_is_admissible_and_what_is_forced_weighs_like_text() -> None:
    _, episodes, lessons = masked_lessons(0.4)
    assert {turn.action for episode in episodes for turn in episode.turns} == set(ACTIONS)
    assert len(lessons) == 30
    for lesson in lessons:
        assert len(lesson.nodes) == len(lesson.ids)
        for target, weight, node in zip(lesson.targets, lesson.weights, lesson.nodes, strict=True):
            chosen = node is not None and node.forced is None
            assert weight == (1.0 if chosen else 0.5)
            if node is not None and target != NO_TARGET:
                assert target in node.children


@pytest.mark.parametrize(("observation_weight", "text_weight"), [(0.25, 0.5), (1.0, 0.5), (0.25, 0.0)])
def test_the_loss_under_a_mask_is_that_of_the_mask_and_that_of_the_text(
    observation_weight: float, text_weight: float
) -> None:
    policy, _, lessons = masked_lessons(0.0, observation_weight)
    config = WarmStart(
        episodes=1, noise=0.0, steps=1, tokens_per_step=512, max_turns=8, matrix_lr=None, other_lr=0.01,
        observation_weight=observation_weight, text_weight=text_weight,
    )  # fmt: skip
    lesson = lessons[0]
    loss, _ = Cloner(policy.model, config, np.random.default_rng(0))._loss([lesson], 1.0)
    logits = next_token_logits(policy.model, torch.tensor([lesson.ids[:-1]]))[0]
    text = torch.nn.functional.cross_entropy(logits, torch.tensor(lesson.ids[1:]), reduction="none").tolist()
    total = weights = 0.0
    for i, (target, weight, node) in enumerate(
        zip(lesson.targets[1:], lesson.weights[1:], lesson.nodes[1:], strict=True)
    ):
        assert target == lesson.ids[i + 1]  # an expert without noise is followed
        masked = 0.0
        if node is not None and node.forced is None:
            masked = -torch.log_softmax(logits[i, node.ids], -1)[list(node.ids).index(target)].item()
        total += masked + (text_weight if masked else weight) * text[i]
        weights += weight
    assert float(loss) == pytest.approx(total / weights, rel=1e-5)


def test_under_a_mask_what_would_be_refused_is_played_and_is_no_target() -> None:
    demonstrator = Demonstrator(GoesRight(), Transcript(), random_policy().tokenizer, 0.0, 0, masked=True)
    view = View(0, Episode(corridor(), 0), "You are in room 1.", {"admissible": ["go left"]})
    (decision,) = demonstrator.act([view])
    assert (decision.action, decision.nodes, demonstrator.wanted[0]) == ("go right", [], [[]])


def test_a_masked_policy_clones_its_expert() -> None:
    policy, _, lessons = masked_lessons(0.2)
    config = WarmStart(
        episodes=1, noise=0.0, steps=60, tokens_per_step=512, max_turns=8, matrix_lr=0.02, other_lr=0.01
    )  # fmt: skip
    Cloner(policy.model, config, np.random.default_rng(0)).run(lessons, Quiet())
    agent = MaskedAgent(policy, Transcript(), Sampling(0.0, 8), torch.Generator().manual_seed(0))
    with EnvPool(Corridors().make, 4) as pool:
        episodes = rollout(agent, pool, [Job(corridor(2 + i), i) for i in range(3)])
    assert all(episode.success for episode in episodes)


class Forced(Corridors):
    """An environment with a single admissible action."""

    def make(self) -> Any:
        return OneWay(self.max_turns)


class OneWay(Corridor):
    """A corridor that can only be walked to the right."""

    def _extra(self, **more: Any) -> dict[str, Any]:
        return {**super()._extra(**more), "admissible": ["go right"]}


def test_demonstrations_without_any_target_are_refused_or_left_out(caplog: pytest.LogCaptureFixture) -> None:
    config = WarmStart(
        episodes=4, noise=0.0, steps=2, tokens_per_step=256, max_turns=3, matrix_lr=0.02, other_lr=0.01,
        observation_weight=0.0,
    )  # fmt: skip
    task_set = Forced()
    jobs = [corridor(3)]

    def clone(config: WarmStart) -> LocalPolicy:
        policy = random_policy()
        with EnvPool(task_set.make, 2) as pool:
            warm_start(policy, Transcript(), task_set, jobs, pool, config, 0, Quiet(), masked=True)
        return policy

    with pytest.raises(
        RuntimeError, match=r"(?s)nothing to clone in 4 sequences .* warm_start.observation_weight is 0"
    ):
        clone(config)
    for share in (1.0, 0.01):
        weighted = replace(config, observation_weight=0.5, observation_share=share)
        assert all(torch.isfinite(weights).all() for weights in clone(weighted).model.parameters())
    assert not caplog.records, "no step was skipped"


def cloned(observation_weight: float, observation_share: float) -> tuple[dict[str, torch.Tensor], int]:
    """What one step makes of a small policy, and of how many positions it asked for the next token."""
    model = random_policy().model
    lesson = Lesson([0, *range(3, 103)], [0, *range(3, 103)], [observation_weight] * 81 + [1.0] * 20)
    config = WarmStart(
        episodes=1, noise=0.0, steps=1, tokens_per_step=512, max_turns=8, matrix_lr=0.02, other_lr=0.01,
        observation_weight=observation_weight, observation_share=observation_share,
    )  # fmt: skip
    asked: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].shape[-2]))
    Cloner(model, config, np.random.default_rng(0)).run([lesson], Quiet())
    return {name: p.detach() for name, p in model.named_parameters()}, sum(asked)


def test_observed_ids_are_targets_by_the_configured_share() -> None:
    nothing, few = cloned(observation_weight=0.5, observation_share=0.0)
    unweighted, _ = cloned(observation_weight=0.0, observation_share=1.0)
    everything, all_of_them = cloned(observation_weight=0.5, observation_share=1.0)
    _, some = cloned(observation_weight=0.5, observation_share=0.5)
    assert (few, all_of_them) == (20, 100)
    assert 45 < some < 75
    for name, p in nothing.items():
        torch.testing.assert_close(p, unweighted[name])
    assert not all(torch.allclose(p, everything[name]) for name, p in nothing.items())


def test_a_model_with_adapters_clones_with_these_alone(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    plain = random_policy()
    save_checkpoint(tmp_path / "model", plain.model, plain.tokenizer)
    policy = Pretrained(lora=Lora(rank=4)).load(tmp_path / "model")
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    config = WarmStart(
        episodes=16, noise=0.0, steps=30, tokens_per_step=4096,  # every step sees all episodes: its loss falls
        max_turns=8, matrix_lr=None, other_lr=0.003, observation_weight=0.0,
    )  # fmt: skip
    tasks = [corridor(length) for length in (2, 3)]
    shares: list[str] = []

    class Told(Quiet):
        def advance(self, status: str = "") -> None:
            shares.append(status)

    with EnvPool(Corridors().make, 4) as pool:
        warm_start(policy, Transcript(), Corridors(), tasks, pool, config, 0, Told())
    changed = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(".lora_" in name for name in changed)
    losses = [float(re.search(r"loss ([\d.]+)", share)[1]) for share in shares[16:]]
    assert len(losses) == 30
    assert losses[-1] < losses[0]


class LongCorridor(Corridor):
    """In corridors of length 4, the second room has a long text."""

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        said, *rest = super()._act(action)
        told = self.payload["length"] == 4 and said.startswith("You are in room 2")
        return (STORY if told else said, *rest)


STORY = "A room. " * 1_000_000


class LongCorridors(Corridors):
    def make(self) -> gym.Env[str, str]:
        return LongCorridor(self.max_turns)


def widths_of(model: Any) -> list[int]:
    """Of all that the model will read."""
    widths: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    return widths


def test_a_demonstration_ends_where_it_exceeds_the_context(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A long observation is neither encoded nor read, the turns before it are cloned, and the log counts it."""
    policy, config = random_policy(context=96), replace(CLONE, episodes=6, steps=4)
    widths, encoded = widths_of(policy.model), []
    prompter, lessons = Transcript(), []
    encode, run = prompter._encode_quoted, Cloner.run
    monkeypatch.setattr(prompter, "_encode_quoted", lambda t, text: encoded.append(text) or encode(t, text))
    monkeypatch.setattr(Cloner, "run", lambda self, these, told: lessons.extend(these) or run(self, these, told))
    tasks = [corridor(length) for length in (2, 3, 4)]
    with EnvPool(LongCorridors().make, 3) as pool:
        warm_start(policy, prompter, LongCorridors(), tasks, pool, config, 0, Quiet())
    assert len(lessons) == 6
    assert max(len(lesson.ids) for lesson in lessons) <= 96
    assert max(widths) <= 96
    assert max(map(len, encoded)) < 1000
    assert "2 of 6 demonstrations ended early: their next turn does not fit into the 96 ids" in caplog.text


def test_a_demonstration_of_many_turns_is_cut_to_the_context(caplog: pytest.LogCaptureFixture) -> None:
    policy = random_policy(context=48)
    widths = widths_of(policy.model)
    with EnvPool(Corridors().make, 2) as pool:
        warm_start(policy, Transcript(), Corridors(), [corridor(8)], pool, replace(CLONE, episodes=2), 0, Quiet())
    assert 16 < max(widths) <= 48
    assert "2 of 2 demonstrations ended early" in caplog.text
