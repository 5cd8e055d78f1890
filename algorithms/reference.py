"""A reference policy other than the initial one: a teacher, whose log-probabilities of the policy's tokens are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents.policies.local import LocalPolicy
from agents.policies.pretrained import Pretrained


def load_reference(name: str | Path, policy: LocalPolicy) -> Any:
    """The frozen model called `name`, on the device of `policy`.

    Raises `ValueError` if it cannot read what `policy` writes: its ids mean other tokens, or its context is shorter.
    """
    loaded = Pretrained().load(name, policy.device)
    theirs, ours = loaded.tokenizer.get_vocab(), policy.tokenizer.get_vocab()
    if theirs != ours:
        differing = {token for token, _ in theirs.items() ^ ours.items()}
        token = min(differing, key=lambda token: (ours.get(token, len(ours)), token))
        ids = (f"id {vocabulary[token]}" if token in vocabulary else "unknown" for vocabulary in (theirs, ours))
        raise ValueError(
            f"algo.reference={name} has another vocabulary than the policy, of {len(theirs)} and {len(ours)} tokens: "
            f"{token!r} is {' there and '.join(ids)} here; a reference reads the policy's ids, so it needs the "
            "policy's tokenizer"
        )
    if loaded.context_length < policy.context_length:
        raise ValueError(
            f"algo.reference={name} reads {loaded.context_length} ids, and the policy writes up to "
            f"{policy.context_length}: set policy.context={loaded.context_length}"
        )
    return loaded.model.requires_grad_(False)
