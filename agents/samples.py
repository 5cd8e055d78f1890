"""Turn episodes into training sequences by the prefix rule.

Consecutive turns of an episode become one sequence exactly when the next prompt starts with the ids of the previous
prompt and completion; otherwise a new sequence starts. Whole-episode and per-turn training both result from this rule.
Which one happens depends on the prompts alone; a prompter announces it in its `layout`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agents.episode import Choice, Episode, Turn

if TYPE_CHECKING:
    from agents.masking import Node

# The samples of a batch are single turns, whole episodes, or a mix.
TURNS, EPISODES, MIXED = "turns", "episodes", "mixed"
LAYOUTS = frozenset({TURNS, EPISODES, MIXED})


@dataclass
class Sample:
    """One training sequence of L ids.

    `mask` is true where the policy sampled the id, `logprobs` holds its log-probability there (0 elsewhere), and
    `turn` the row of the turn it belongs to (-1 elsewhere), counted over all episodes in their order, which is the
    order of a `TurnTable`.

    Example: two turns `[1, 2] → [3, 4]` and `[1, 2, 3, 4, 5] → [6]` are one sample: `ids=[1, 2, 3, 4, 5, 6]`,
    `mask=[F, F, T, T, F, T]`, `turn=[-1, -1, 0, 0, -1, 1]`.

    A turn with a `choice` is a separate sample: the prompt, then all candidates side by side. The policy sampled one
    candidate as a whole; its log-probability is stored at the first id after the prompt. The samples of a batch either
    all have choices or all have sampled ids.
    """

    ids: list[int] = field(default_factory=list)  # [L]
    mask: list[bool] = field(default_factory=list)  # [L]
    logprobs: list[float] = field(default_factory=list)  # [L]
    turn: list[int] = field(default_factory=list)  # [L]
    choice: Choice | None = None
    # [L] what was allowed at each id, by a mask or by truncated sampling; None where every id was; empty if all were.
    nodes: list[Node | None] = field(default_factory=list)
    origin: str = ""  # its episode, for messages: "episode 3 of task 'train-017'"

    def extend(
        self, ids: Sequence[int], logprobs: Sequence[float] | None = None, turn: int = -1, nodes: Sequence[Node] = ()
    ) -> None:
        """Append observed ids, or, with `logprobs`, sampled ids of `turn`; `nodes` say what was allowed."""
        if nodes and not self.nodes:
            self.nodes += [None] * len(self.ids)
        if self.nodes or nodes:
            self.nodes += nodes or [None] * len(ids)
        self.ids += ids
        self.mask += [logprobs is not None] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)
        self.turn += [turn] * len(ids)


def build_samples(episodes: Iterable[Episode]) -> list[Sample]:
    """The training sequences of the episodes' turns.

    Raises `ValueError` for turns without sampled ids (of scripted agents), and if some turns chose an action among
    candidates while others sampled ids.
    """
    samples: list[Sample] = []
    row = 0
    for number, episode in enumerate(episodes):
        origin = f"episode {number} of task {episode.task.id!r}"
        current: Sample | None = None
        for turn in episode.turns:
            if samples and (samples[0].choice is None) != (turn.choice is None):
                kinds = "sampled ids", "chose among candidates"
                raise ValueError(
                    f"turn {row} ({origin}) {kinds[turn.choice is not None]}, and turns before it "
                    f"{kinds[turn.choice is None]}; a batch holds one kind: use one agent for all turns"
                )
            if turn.choice is not None:
                samples.append(_choice_sample(turn, turn.choice, row, origin))
                row += 1
                continue
            if not turn.completion_ids or len(turn.completion_ids) != len(turn.logprobs):
                raise ValueError(
                    f"turn {row} of task {episode.task.id!r} has {len(turn.completion_ids)} sampled ids and "
                    f"{len(turn.logprobs)} log-probabilities; a training sample needs at least one id and one "
                    "log-probability for each"
                )
            if current is None or turn.prompt_ids[: len(current.ids)] != current.ids:
                current = Sample(origin=origin)
                samples.append(current)
            current.extend(turn.prompt_ids[len(current.ids) :])
            current.extend(turn.completion_ids, turn.logprobs, row, turn.nodes)
            row += 1
    return samples


def _choice_sample(turn: Turn, choice: Choice, row: int, origin: str) -> Sample:
    sample = Sample(choice=choice, origin=origin)
    sample.extend(turn.prompt_ids)
    ids = [i for candidate in choice.ids for i in candidate]
    sample.extend(ids[:1], turn.logprobs, row)
    sample.extend(ids[1:])
    return sample
