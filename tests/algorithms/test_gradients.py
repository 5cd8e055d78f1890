"""The gradient of every loss and correction equals finite differences, in float64.

A value that a loss detaches is a constant of its gradient. So the differences are those of the objective in which these
values are what they were at the weights where the gradient is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from algorithms import losses
from algorithms.correction import Correction
from algorithms.learner import Learner, Portion
from algorithms.losses import (
    AGGREGATIONS,
    KL_ESTIMATORS,
    clip_loss,
    knows_demonstrations,
    vespo_loss,
)
from tests.agents.toys import random_policy
from tests.algorithms.test_learner import moved, off_policy, samples
from tests.algorithms.test_trainer import learner_config

STEP = 1e-5


class Detached:
    """Records what is detached, and later returns these values again, in the same order."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []

    @contextmanager
    def recorded(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        detach = torch.Tensor.detach

        def record(tensor: torch.Tensor) -> torch.Tensor:
            self.values.append(detach(tensor).clone())
            return detach(tensor)

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "detach", record)
            yield

    @contextmanager
    def repeated(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        values = iter(self.values)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "detach", lambda _: next(values))
            yield
        assert next(values, None) is None


def _keep_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and logits are computed in float32, which is too coarse for differences."""
    to = torch.Tensor.to

    def stay(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return tensor if args == (torch.float32,) and not options else to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", stay)
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)


def assert_gradient(objective: Callable[[], torch.Tensor], model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The derivatives along the gradients of two weights are the squares of their norms."""
    _keep_float64(monkeypatch)
    detached = Detached()
    with detached.recorded(monkeypatch):
        value = objective()
    value.backward()  # type: ignore[no-untyped-call]
    for weight in (model.get_input_embeddings().weight, model.model.layers[-1].mlp.up_proj.weight):
        gradient = weight.grad.clone()
        norm = float(gradient.norm())
        assert norm > 0
        at = []
        for side in (STEP, -STEP):
            with torch.no_grad():
                weight.add_(gradient, alpha=side / norm)
                with detached.repeated(monkeypatch):
                    at.append(float(objective()))
                weight.sub_(gradient, alpha=side / norm)
        assert (at[0] - at[1]) / (2 * STEP) == pytest.approx(norm, rel=1e-5)


def objective_of(correction: Correction | None = None, **settings: Any) -> tuple[Callable[[], torch.Tensor], Any]:
    """The objective of a minibatch that another policy sampled, as a function of the weights, and the model."""
    batch, table, advantages = samples()
    off_policy(batch)
    model = random_policy().model
    learner = Learner(model, learner_config(minibatches=1, correction=correction, **settings))
    moved(model)
    model.double()
    if learner.reference is not None:
        learner.reference.double()
    advantages = advantages / np.abs(advantages).max()  # NFT needs -1 to 1
    examples = learner.examples(batch, table, advantages, learner.correct(batch, table))
    if knows_demonstrations(learner.objective.loss):
        examples[0] = examples[0]._replace(demonstrated=np.ones(6, dtype=np.bool_))
    marked = learner._with_minibatch_values(Portion(examples, learner.objective), np.random.default_rng(0))
    divisor = learner._divisor(marked)
    return lambda: learner._loss(marked, learner.objective, divisor, defaultdict(float)), model


LOSSES = {name: loss for name, loss in vars(losses).items() if name.endswith("_loss") and name != "value_loss"}
SETTINGS = {  # of losses that need some, or that would choose none of so few ids
    "kl_cov_loss": {"share": 0.3},
    "clip_cov_loss": {"share": 0.3},
    "s_grpo_loss": {"share": 0.5},
    "top_entropy_loss": {"share": 0.5},
    "gspo_loss": {"eps_low": 0.2, "eps_high": 0.2},
}
CORRECTIONS = [
    Correction(),
    Correction("turn", normalize=True),
    Correction("episode_mean", low=0.5, outside="zero"),
    Correction("episode", high=5.0),
]


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = partial(LOSSES[name], **SETTINGS.get(name, {}))
    assert_gradient(*objective_of(loss=loss), monkeypatch)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregations_with_an_entropy_bonus(aggregation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    divisor = 7.0 if aggregation == "seq-mean-token-sum-norm" else None
    assert_gradient(*objective_of(aggregation=aggregation, loss_divisor=divisor, entropy_coef=0.3), monkeypatch)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_kl_estimators(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_gradient(*objective_of(kl_coef=0.5, kl_estimator=estimator), monkeypatch)


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda correction: correction.level)
@pytest.mark.parametrize("loss", [clip_loss, vespo_loss])
def test_corrections(loss: Any, correction: Correction, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_gradient(*objective_of(correction, loss=loss), monkeypatch)
