"""A learned value of the state before each turn and each token, trained along by regression to the returns.

PPO: Schulman et al., arXiv 1707.06347; the value loss is clipped as in verl (`algorithms.losses.value_loss`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policies.weights import copy_trained, train_in_float32
from algorithms.batches import Batch, by_sample, hidden_states, make_batch, micro_batches, read
from algorithms.losses import value_loss
from algorithms.signals.base import Bench, Measurement, Played, first_tokens
from algorithms.turn_table import Estimate, TurnTable
from envs.core import UnknownNameError

BODIES = ("separate", "policy")


class Critic:
    """Signals `value`, of turns and of tokens: what is still to be earned, told before the turn or token is known.

    `body="separate"` is a copy of the policy's first weights with a head of its own, all of it trained;
    `body="policy"` a head on the policy's hidden states, which the head does not train.
    """

    needs_starts = False

    def __init__(
        self,
        bench: Bench,
        *,
        body: str = "separate",
        learning_rate: float = 1e-5,
        epochs: int = 1,
        clip: float | None = 0.5,
    ) -> None:
        """`clip` in units of value bounds a step of the value; `epochs` is of passes over each batch."""
        if body not in BODIES:
            raise UnknownNameError("body", body, BODIES)
        self.bench, self.epochs, self.clip = bench, epochs, clip
        self.owns_body = body == "separate"
        self.body = copy_trained(bench.model) if self.owns_body else bench.model
        if self.owns_body:
            train_in_float32(self.body)
        width = bench.model.config.get_text_config().hidden_size
        self.head = torch.nn.Linear(width, 1, device=bench.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        trained = [*self.head.parameters(), *(self._body_parameters() if self.owns_body else ())]
        self.optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)

    def _body_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.body.base_model.parameters() if p.requires_grad]

    def _values(self, batch: Batch) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.owns_body):
            states = hidden_states(self.body, batch, self.bench.dtype)
        values: Tensor = self.head(states.float())[..., 0]
        return values

    def measure(self, played: Played) -> Measurement:
        values = read(played.samples, self.bench.micro_batch_tokens, self.bench.device, self._values)
        by_turn = first_tokens(played.table, values)
        metrics = {"signal/value": float(by_turn.mean())}
        return Measurement({"value": by_turn}, {"value": values}, metrics)

    def learn(self, played: Played, estimate: NDArray[np.float64] | Estimate) -> dict[str, float]:
        """Fit the values to the estimate's returns: at the first token of each turn where they are of turns."""
        if not isinstance(estimate, Estimate):
            raise TypeError("a critic learns from returns, and this estimator gives advantages alone; see `Estimate`")
        targets = per_token_targets(played.table, estimate.returns)
        old = played.table.token_signal("value")
        columns = [by_sample(played.samples, column) for column in (targets, old)]
        known = np.isfinite(targets)
        total = 0.0
        for _ in range(self.epochs):
            total = 0.0
            for part in micro_batches([len(s.ids) for s in played.samples], self.bench.micro_batch_tokens):
                batch = make_batch([played.samples[i] for i in part], self.bench.device)
                goal, before = (batch.spread([column[i] for i in part]) for column in columns)
                at = batch.mask & goal.isfinite()
                loss = value_loss(self._values(batch)[at], before[at], goal[at], clip=self.clip).sum() / known.sum()
                loss.backward()
                total += float(loss.detach())
            parameters: list[Any] = self.optimizer.param_groups[0]["params"]
            torch.nn.utils.clip_grad_norm_(parameters, self.bench.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        unexplained = float(np.var((targets - old)[known])) / max(float(np.var(targets[known])), 1e-12)
        return {"signal/value_loss": total, "signal/explained_variance": 1.0 - unexplained}

    def state(self) -> dict[str, Any]:
        body = self.body.base_model.state_dict() if self.owns_body else {}
        return {"head": self.head.state_dict(), "body": body, "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        if self.owns_body:
            self.body.base_model.load_state_dict(state["body"])
        self.optimizer.load_state_dict(state["optimizer"])


def per_token_targets(table: TurnTable, returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """[M] what each token's value is fitted to: its own return, or the turn's on its first token and NaN elsewhere."""
    if len(returns) == len(table.token_rows):
        return returns
    assert table.tokens is not None
    targets = np.full(len(table.token_rows), np.nan)
    targets[np.cumsum(table.tokens) - table.tokens] = returns
    return targets
