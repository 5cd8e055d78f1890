"""Check what a method needs before the run starts. Otherwise it fails after minutes of warm start and evaluation.

    needs = check_method(…)                      # reads what signals, estimator and agent declare, without torch
    check_expert(needs, task_set)
    check_environment(needs, tasks, pool)        # plays the first turn of a few tasks
    check_parts(…)                               # builds the parts around a tiny policy

Not checked: whether rewards are 0 and 1 (methods that need this raise during training), and whether a batch fits into
memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from agents.agent import PolicyAgent
from agents.candidates import CandidateAgent
from algorithms.filters import Filter
from algorithms.signals.base import MakeSignal, Signal, SignalBase, SignalContext
from algorithms.tree_expansion import TreeExpansion
from algorithms.turn_table import Estimate, TurnTable
from envs.core import TURN_KEYS, Info, Need, Task, TaskSet, UnknownNameError
from envs.pool import EnvPool
from envs.pool_env import error_line

if TYPE_CHECKING:  # torch takes seconds to import, and mistakes are reported before that
    import torch

    from agents.policies.local import LocalPolicy
    from algorithms.learner import LearnerConfig, PolicyLoss
    from algorithms.replay import Replay
    from algorithms.trainer import Estimator, TrainerConfig

Needs: TypeAlias = Mapping[Need, str]  # each need, and the part of the configuration that has it
MakeAgent: TypeAlias = "Callable[[LocalPolicy, torch.Generator], PolicyAgent]"
WHERE = {  # how an environment provides it
    Need.ADMISSIBLE: "a list in info['admissible'], as env=tools has with env.format=brackets; agent=transcript and "
    "agent=chat need none",
    Need.ANSWERS: "a list in info['answers'], as env=search has",
    Need.EXPERT: "one that `expert()` of its task set makes",
    Need.SNAPSHOTS: "its methods snapshot() and restore(state)",
    Need.TURN_REWARDS: f"{' and '.join(f'info[{key!r}]' for key in TURN_KEYS)} of every step, as env=search has",
}


def check_method(
    player: Any,
    signals: Mapping[str, MakeSignal],
    estimator: Estimator,
    tree_expansion: TreeExpansion | None,
    group_size: int,
    filters: Mapping[str, Filter],
    demonstrations: int = 0,
    kl_in_reward: bool = False,
) -> Needs:
    """Check what the parts of a method declare, without building them. Returns what they need from the environment.

    `player` makes the agent. A part that is not made by a class declares nothing; `check_parts` checks it.
    Raises `ValueError` and `MissingSignalError`, and the error of a judge that cannot be reached.
    """
    named_filters = {f"algo.filters.{name}": part for name, part in filters.items()}
    for place, part in {"algo.estimator": estimator, **_named(signals), **named_filters}.items():
        _check_options(place, part)
    for place, part in named_filters.items():
        part([])  # raises for a wrong setting
        if group_size == 1 and getattr(_function(part), "compares_attempts", False):
            raise ValueError(
                f"{place} compares attempts at a task, and with trainer.group_size=1 there is nothing to compare; use "
                "at least 2"
            )
    made = {name: _declared(make) for name, make in signals.items()}
    _check_estimator(estimator, made, group_size, demonstrations, kl_in_reward)
    if demonstrations and _function(player) is CandidateAgent:
        raise ValueError(
            f"algo.demonstrations={demonstrations}: a demonstration is written as text, and agent.player=candidates "
            "chooses whole actions; use agent=masked or agent=transcript"
        )
    if tree_expansion is not None:
        tree_expansion.check(group_size)
    for name, make in signals.items():
        made[name].check(make.keywords if isinstance(make, partial) else {})
    return _needs(made, tree_expansion, demonstrations, getattr(_function(player), "needs", ()))


def check_aggregation(aggregation: str, loss_divisor: float | None) -> None:
    """Raises `ValueError` for a divisor that the aggregation does not use, or lacks."""
    if (aggregation == "seq-mean-token-sum-norm") != (loss_divisor is not None):
        raise ValueError(
            f"algo.loss_divisor is {loss_divisor} with algo.aggregation={aggregation}; the aggregation "
            "seq-mean-token-sum-norm needs a constant, for example the token limit, and no other uses one"
        )


def check_reference(reference: str | None, kl_coef: float) -> None:
    """Raises `ValueError` for a reference that nothing is measured against."""
    if reference is not None and not kl_coef:
        raise ValueError(
            f"algo.reference={reference} is the model that KL is measured against, and with algo.kl_coef=0 none is: "
            "set algo.kl_coef, or leave the reference out"
        )


def check_dynamic_sampling(dynamic_sampling: bool, group_size: int) -> None:
    """Raises `ValueError` for groups of which all would be dropped."""
    if dynamic_sampling and group_size == 1:
        raise ValueError(
            "algo.dynamic_sampling=true drops groups in which all attempts have the same return; with "
            "trainer.group_size=1 this is every group, so use at least 2"
        )


def _declared(make: MakeSignal) -> Any:
    """The class of a signal, which has its declarations; `SignalBase` if another function makes it."""
    made = _function(make)
    return made if isinstance(made, type) else SignalBase


def _function(part: Any) -> Any:
    return part.func if isinstance(part, partial) else part


def _needs(
    signals: Mapping[str, Any], tree_expansion: TreeExpansion | None, demonstrations: int, of_agent: Iterable[Need]
) -> Needs:
    needs = {need: place for place, signal in _named(signals).items() for need in signal.needs}
    if tree_expansion is not None:
        needs[Need.SNAPSHOTS] = "algo.tree_expansion"
    if demonstrations:
        needs[Need.EXPERT] = "algo.demonstrations"
    return needs | dict.fromkeys(of_agent, "agent.player")


def check_parts(
    make_agent: MakeAgent,
    signals: Mapping[str, MakeSignal],
    estimator: Estimator,
    learner: LearnerConfig,
    config: TrainerConfig,
    pool: EnvPool,
    seed: int,
    replay: Replay | None = None,
) -> Needs:
    """Build all parts of a run around a policy with few weights, and run them on a few made-up turns.

    This also checks settings that are read only when a part is built or used. Returns what the parts need from the
    environment. Raises `ValueError` and `UnknownNameError`.
    """
    import torch

    from algorithms.learner import Learner
    from algorithms.signals.base import make_signals

    losses = {"algo.loss": learner.objective.loss}
    if replay is not None and replay.loss is not None:
        losses["algo.replay.loss"] = replay.loss
    for place, loss in losses.items():
        _check_options(place, loss)
        if isinstance(loss, partial):
            _check_options(f"{place}.of", loss.keywords.get("of"))
    with torch.random.fork_rng():
        policy = _tiny_policy(seed)
        agent = make_agent(policy, torch.Generator(policy.device))
        learner.objective.check_layout(frozenset({agent.layout}), "this agent")
        learned = Learner(policy.model, learner)  # in one process, so it may come before the signals
        context = SignalContext(
            policy.model,
            agent,
            pool,
            learned.dtype,
            learner.micro_batch_tokens,
            learner.grad_clip,
            config.max_turns,
            seed,
        )
        made = make_signals(signals, context)
    for place, loss in losses.items():
        _check_loss(loss, config.demonstrations if place == "algo.loss" else 0)
    _check_units(losses)
    paid = bool(learner.objective.reward_kl_coef)
    _check_estimator(estimator, made, config.group_size, config.demonstrations, paid)
    return _needs(made, config.tree_expansion, config.demonstrations, agent.needs)


def _named(signals: Mapping[str, Any]) -> dict[str, Any]:
    return {f"algo.signals.{name}": signal for name, signal in signals.items()}


def _check_options(place: str, part: Any) -> None:
    """Raises `UnknownNameError` for a setting that the function does not have."""
    if not isinstance(part, partial):
        return
    parameters = inspect.signature(part.func).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in part.keywords.keys() - parameters.keys():
        raise UnknownNameError(f"setting of {place}", name, part.keywords.keys() & parameters.keys())


def _tiny_policy(seed: int) -> LocalPolicy:
    from agents.policies.local import LocalPolicy
    from agents.policies.models import find_device
    from agents.policies.tiny import build_model, build_tokenizer, vocabulary_size

    tokenizer = build_tokenizer(["go on"])
    model = build_model(vocabulary_size(tokenizer), width=8, layers=1, heads=1, feed_forward=8, context=64, seed=seed)
    return LocalPolicy(model.to(find_device()), tokenizer)


def _check_units(losses: Mapping[str, PolicyLoss]) -> None:
    """Raises `ValueError` for losses over different units: stored examples know those of the batch's loss."""
    from algorithms.losses import unit_of

    units = {place: unit_of(loss) or "turn" for place, loss in losses.items()}
    if len({*units.values()}) > 1:
        taken = " and ".join(f"{place} takes {unit}s" for place, unit in units.items())
        raise ValueError(f"replayed turns have the units of algo.loss, but {taken}")


def _check_loss(loss: PolicyLoss, demonstrations: int) -> None:
    import torch

    from algorithms.losses import Tokens, knows_demonstrations, make_units, marker, unit_measure

    tokens, known = torch.zeros(2, 3), dict[str, Any]()
    if knows_demonstrations(loss):
        known["demonstrated"] = tokens != 0
    elif demonstrations:
        raise ValueError(
            f"algo.demonstrations={demonstrations}: algo.loss={_function(loss).__name__} takes the tokens of a "
            "demonstration for the policy's own; use a loss with the parameter `demonstrated`, such as luffy_loss"
        )
    if (mark := marker(loss)) is not None:
        one = np.zeros(1)
        mark(Tokens(one, one, one, one, one.astype(np.int64)), np.random.default_rng(0))
        known["marks"] = tokens
    if (measured := unit_measure(loss)) is not None:
        known["units"] = make_units(measured[1], tokens, tokens, tokens, tokens == 0, tokens)
    loss(tokens, tokens, tokens, tokens == 0, **known)


def _check_estimator(
    estimator: Estimator, signals: Mapping[str, Signal], group_size: int, demonstrations: int, kl_in_reward: bool
) -> None:
    """Raises `MissingSignalError` if the estimator reads a signal that none of `signals` provides."""
    function = _function(estimator)
    if group_size == 1 and getattr(function, "compares_attempts", False):
        raise ValueError(
            f"algo.estimator={function.__name__} compares attempts at a task, and with trainer.group_size=1 there is "
            "nothing to compare; use at least 2, or a method for single attempts, such as algo=reinforce_pp"
        )
    given = [(signal.gives, signal.gives_tokens) for signal in signals.values()]
    if any(turns is None or tokens is None for turns, tokens in given):
        return  # this signal does not declare what it provides
    table = _made_up_table(
        [*["demonstration"] * bool(demonstrations), *(name for turns, _ in given for name in turns or ())],
        [*["token_reward"] * kl_in_reward, *(name for _, tokens in given for name in tokens or ())],
        max(group_size, 2),
    )
    with np.errstate(all="ignore"):
        estimate = estimator(table)
    if not isinstance(estimate, Estimate) and (critics := [n for n, s in signals.items() if s.learns_returns]):
        raise ValueError(
            f"algo.signals.{critics[0]} learns from returns, but algo.estimator={function.__name__} returns only "
            "advantages; use an estimator that returns an Estimate, such as token_gae"
        )


def _made_up_table(signals: Sequence[str], token_signals: Sequence[str], group_size: int) -> TurnTable:
    """Two turns of two tokens in each of `group_size` attempts at two tasks; each task's first attempt succeeds."""
    episodes = 2 * group_size
    episode = np.repeat(np.arange(episodes), 2)
    turn = np.tile(np.arange(2), episodes)
    first = episode % group_size == 0
    reward = np.where((turn == 1) & first, 1.0, 0.0)
    rows, tokens = np.arange(2 * episodes), np.full(2 * episodes, 2)
    kinds = {"node": rows, "tree": episode, "tool_result": rows >= 0, "demonstration": first}
    return TurnTable(
        group=episode // group_size, episode=episode, turn=turn, reward=reward,
        state=np.array([f"room {number}" for number in turn], dtype=object), valid=rows >= 0,
        signals={name: kinds.get(name, reward / 2 - 0.5) for name in signals}, tokens=tokens,
        token_signals={name: np.repeat(reward / 2 - 0.5, 2) for name in ["logprob", *token_signals]},
    )  # fmt: skip


def check_expert(needs: Needs, task_set: TaskSet) -> None:
    """Raises `ValueError` if an expert is needed, and `task_set` has none."""
    if Need.EXPERT in needs and task_set.expert() is None:
        raise _unmet(Need.EXPERT, needs, task_set.env_id)


def check_environment(needs: Needs, tasks: Sequence[Task], pool: EnvPool) -> None:
    """Play the first turn of `tasks`, one after another, in the first slot of `pool`.

    Raises `ValueError` for needs that are not met. Tasks that fail for other reasons are left to the run, which counts
    them.
    """
    infos: list[Info] = []
    for task in tasks:
        first = pool.reset({0: task}, {0: task.seed})[0]
        if first.error is not None:
            continue
        infos.append(first.info)
        if Need.SNAPSHOTS in needs:
            taken = pool.snapshot([0])[0]
            restored = pool.restore({0: taken.snapshot})[0] if taken.error is None else taken
            if restored.error is not None:
                raise _unmet(Need.SNAPSHOTS, needs, tasks[0].env, f" ({error_line(restored.error.text)})")
        if Need.TURN_REWARDS in needs:
            after = pool.step({0: next(iter(first.info.get("admissible") or ["look"]))})[0]
            if after.error is None and not TURN_KEYS.keys() <= after.info.keys():
                raise _unmet(Need.TURN_REWARDS, needs, tasks[0].env)
    for need, key in ((Need.ADMISSIBLE, "admissible"), (Need.ANSWERS, "answers")):
        if infos and need in needs and not any(info.get(key) for info in infos):
            raise _unmet(need, needs, tasks[0].env)


def _unmet(need: Need, needs: Needs, env: str, detail: str = "") -> ValueError:
    return ValueError(f"{needs[need]} needs {need}, and {env} has none{detail}: expected {WHERE[need]}")
