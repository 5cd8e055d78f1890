"""Read what kind of reasoning a turn begins with, and reward it by rules (RLVMR).

    <planning> Step 1: … </planning> <action>go to desk 1</action>

| tag | reward if |
|---|---|
| `planning` | the attempt solves its task |
| `explore` | no earlier turn of the attempt in this form had the same action |
| `reflection` | the action before was not of this form or not admissible, and is another one; also in a first turn |
| `monitor` | never |

An answer has the form if an action was read, and exactly one pair of these tags stands before it and holds a text.
Other answers have no reward.

Paper: Zhang et al., *RLVMR*, arXiv 2507.22844. The rules are those of `process_trajectory_rlvmr_rewards` in the
authors' code (digitalhuman, `RLVMR/code/rlvmr/core_rlvmr.py`), with its reward of 1 for each. Left out: there an answer
with Chinese characters does not have the form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.episode import Episode, ParseStatus
from agents.parsing import REASONING
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal
from envs.tags import PairedTags

ACTION = PairedTags("action", ignore_case=True)
PAIRS = {name: PairedTags(name, ignore_case=True) for name in REASONING}
REWARDED = ("", "planning", "explore", "reflection")  # by number; `monitor` has the number 0, as in the authors' code


class Tagged(NamedTuple):
    """The reasoning of a turn."""

    tag: str  # "" if the answer does not have the form
    reward: float


class MetaReasoning(UntrainedSignal):
    """Signals `tag`, `tag_reward` and `tag_form`: kind of reasoning, its reward, whether the answer has the form."""

    gives = ("tag", "tag_reward", "tag_form")
    gives_tokens = ()

    def __init__(
        self, context: SignalContext, *, planning: float = 1.0, explore: float = 1.0, reflection: float = 1.0
    ) -> None:
        self.tokenizer = context.agent.policy.tokenizer
        self.rewards = {"planning": planning, "explore": explore, "reflection": reflection}

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        """Raises `ValueError` for whole actions that were chosen, since they hold no reasoning."""
        if any(sample.choice for sample in rollouts.samples):
            raise ValueError(
                "the signal meta_reasoning is for policies that write their reasoning; agent=candidates chooses whole "
                "actions"
            )
        turns = []
        for episode in rollouts.episodes:
            texts = [self.tokenizer.decode(turn.completion_ids, skip_special_tokens=True) for turn in episode.turns]
            turns += tagged_turns(episode, texts)
        tags = [turn.tag for turn in turns]
        signals = {
            "tag": np.array([REWARDED.index(tag) if tag in REWARDED else 0 for tag in tags], dtype=np.int64),
            "tag_reward": np.array([self.rewards.get(tag, 0.0) * reward for tag, reward in turns], dtype=np.float64),
            "tag_form": np.array([tag != "" for tag in tags], dtype=np.bool_),
        }
        means = {f"tag_{tag}": tags.count(tag) / max(len(tags), 1) for tag in REASONING}
        means["tag_reward"] = float(signals["tag_reward"].mean())
        return Measurement(signals, metrics={f"signal/{name}": mean for name, mean in means.items()})


def tagged_turns(episode: Episode, texts: Sequence[str]) -> list[Tagged]:
    """The reasoning of an episode's turns, whose answers are `texts`; each reward is 1 or 0."""
    tags = [
        "" if turn.status in (ParseStatus.MALFORMED, ParseStatus.TRUNCATED) else reasoning_of(text)
        for turn, text in zip(episode.turns, texts, strict=True)
    ]
    played = set[str]()
    turns = []
    for number, (turn, tag) in enumerate(zip(episode.turns, tags, strict=True)):
        before = episode.turns[number - 1] if number else None
        failed = before is None or not tags[number - 1] or before.status is not ParseStatus.OK
        earned = {
            "planning": episode.success,
            "explore": turn.action not in played,
            "reflection": failed and (before is None or before.action != turn.action),
        }
        turns.append(Tagged(tag, float(earned.get(tag, False))))
        if tag:
            played.add(turn.action)
    return turns


def reasoning_of(text: str) -> str:
    """The name of the only pair of tags for reasoning, before the only action; otherwise ""."""
    found = [(name, pair) for name, pairs in PAIRS.items() for pair in pairs.findall(text)]
    if len(found) != 1 or not found[0][1].content.strip() or len(ACTION.findall(text)) > 1:
        return ""
    name, pair = found[0]
    action = text.lower().find("<action>")
    return name if action < 0 or text.find(f"<{pair.name}>") < action else ""
