"""A model with a head of one number for each state, its optimiser and its checkpoint, for signals that learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agents.policies.sharded import load_optimizer_state, load_whole_state, optimizer_state, whole_state
from agents.policies.weights import copy_trained, train_in_float32
from algorithms.batches import Batch, hidden_states
from algorithms.signals.base import SignalBase, SignalContext
from envs.core import UnknownNameError

BODIES = ("separate", "policy")


class Headed(SignalBase):
    """A linear head, which starts at 0.

    `body="separate"` is a copy of the policy's initial weights with its own head, all of it trained; `body="policy"` is
    a head on the policy's hidden states, which the head does not train.
    """

    def __init__(self, context: SignalContext, body: str, learning_rate: float) -> None:
        """Raises `UnknownNameError` for another `body`."""
        if body not in BODIES:
            raise UnknownNameError("body", body, BODIES)
        self.context = context
        self.owns_body = body == "separate"
        self.body = copy_trained(context.model) if self.owns_body else context.model
        if self.owns_body:
            train_in_float32(self.body)
        width = context.model.config.get_text_config().hidden_size
        self.head = torch.nn.Linear(width, 1, device=context.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        if self.owns_body:
            context.parallel.place(self.body, context.dtype)
        of_body = self.body.base_model.named_parameters() if self.owns_body else ()
        parts: list[dict[str, Tensor]] = [  # of which one may be divided
            {f"head.{name}": p for name, p in self.head.named_parameters()},
            {f"body.{name}": p for name, p in of_body if p.requires_grad},
        ]
        self.trained = parts[0] | parts[1]
        groups = [{"params": list(part.values())} for part in parts if part]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0)

    def _values(self, batch: Batch) -> Tensor:
        """[B, T] the number for the state before each id after the first."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.owns_body):
            states = hidden_states(self.body, batch, self.context.dtype)
        values: Tensor = self.head(states.float())[..., 0]
        return values

    def state(self) -> dict[str, Any]:
        body = whole_state(self.body.base_model) if self.owns_body else {}
        optimizer = optimizer_state(self.optimizer, self.trained)
        return {"head": self.head.state_dict(), "body": body, "optimizer": optimizer}

    def load_state(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        if self.owns_body:
            load_whole_state(self.body.base_model, state["body"])
        load_optimizer_state(self.optimizer, self.trained, state["optimizer"])
