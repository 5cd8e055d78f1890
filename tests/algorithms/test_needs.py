"""The needs of a method are checked before anything starts; a missing one is an error of one line."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from agents.endpoint import EndpointError
from algorithms.estimators.grpo import grpo
from algorithms.needs import Needs, check_environment, check_parts
from algorithms.signals.base import Measurement, RolloutBatch, SignalContext, UntrainedSignal
from algorithms.turn_table import MissingSignalError, TurnTable
from envs.core import Info, Need, UnknownNameError
from envs.pool import EnvPool
from envs.search.tasks import SearchTasks
from scripts.train import Method, Parts
from tests.agents.corridors import Corridor, Corridors, corridor
from tests.agents.endpoint_server import Serve, answered
from tests.algorithms.test_algo_conf import NAMES, whole

NEEDS = {
    "igpo": {Need.ANSWERS},
    "mt_grpo": {Need.TURN_REWARDS},
    "fine_grained": {Need.TURN_REWARDS},
    "trace": {Need.ANSWERS},
    "luffy": {Need.EXPERT},
    "chord": {Need.EXPERT},
    **{name: {Need.SNAPSHOTS} for name in ("vineppo", "spo_chain", "spo_tree", "tree_grpo", "arpo")},
}
JUDGED = ["capo", "pure", "tp_grpo"]
ALONE = {  # those that look at each attempt by itself
    "archer", "bi_level_ppo", "fine_grained", "ma_ppo", "ntpo", "nsr", "opd", "poad", "ppo", "psr", "raft", "raft_pp",
    "reinforce_pp", "single_stream", "spa_rl", "spo_chain", "step_grpo", "turn_ppo", "twosome", "vineppo",
    "w_reinforce",
}  # fmt: skip


def configured(name: str, *overrides: str, judge: str = "") -> DictConfig:
    more = [f"algo.signals.judge.model.base_url={judge}", "algo.signals.judge.model.name=m"] if name in JUDGED else []
    config: DictConfig = whole(name, *more, *overrides)
    return config


def check(config: DictConfig) -> Needs:
    method = Method.of(config)
    needs = method.check(config)
    assert Parts.of(config, method).check(config, Corridors()) == needs  # what is declared is what is made
    return needs


@pytest.mark.parametrize("name", NAMES)
def test_every_method_passes_with_its_own_settings_and_declares_its_needs(name: str, serve: Serve) -> None:
    judge = serve(lambda _: answered("yes"))
    # The default agent writes under a mask, and needs to know what is admissible.
    assert set(check(configured(name, judge=judge.url))) == NEEDS.get(name, set()) | {Need.ADMISSIBLE}
    assert len(judge.asked) == (name in JUDGED)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_that_compares_attempts_refuses_single_ones(name: str, serve: Serve) -> None:
    judge = serve(lambda _: answered("yes"))
    config = configured(name, "trainer.group_size=1", judge=judge.url)
    if name in ALONE:
        check(config)
        return
    with pytest.raises(
        ValueError, match=r"group_size=1 (there is nothing to compare|this is every group|does not fit)"
    ):
        check(config)


@pytest.mark.parametrize(
    ("name", "signal"),
    [("igpo", "answer_logprob"), ("vineppo", "mc_value"), ("ppo", "value"), ("istar", "prm"), ("tree_grpo", "tree"),
     ("empg", "entropy"), ("mt_grpo", "tool_result")],
)  # fmt: skip
def test_an_estimator_without_its_signal_is_refused(name: str, signal: str) -> None:
    config = configured(name)
    OmegaConf.set_struct(config, False)
    config.algo.signals = {}
    with pytest.raises(MissingSignalError, match=signal):
        check(config)


def test_a_critic_with_an_estimator_without_returns_is_refused() -> None:
    config = configured("grpo")
    OmegaConf.set_struct(config, False)
    config.algo.signals = configured("ppo").algo.signals
    with pytest.raises(ValueError, match=r"algo\.signals\.critic learns from returns.*grpo"):
        check(config)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("gigpo", "+algo.estimator.gama=1", r"unknown setting of algo.estimator 'gama'; did you mean 'gamma'"),
        ("gigpo", "+algo.loss.dual=1", "unknown setting of algo.loss 'dual'"),
        ("ppo", "+algo.signals.critic.rate=1", "unknown setting of algo.signals.critic 'rate'"),
        ("gigpo", "algo.estimator.statistics=turn", "unknown statistics 'turn'"),
        ("gigpo", "algo.loss.dual_clip=0.5", "dual_clip bounds ratios above 1"),
        ("ppo", "algo.signals.critic.body=own", "unknown body 'own'"),
        ("vineppo", "algo.signals.monte_carlo.attempts=0", "attempts and segment_turns must be at least 1"),
        ("igpo", "algo.signals.answer_gain.action=answer", "need exactly one .* for the answer"),
        ("istar", "algo.signals.implicit_prm.update=never", "unknown update 'never'"),
        ("twosome", "agent.player.normalization=letter", "unknown normalization 'letter'"),
        ("gigpo", "trainer.minibatches=0", "trainer.minibatches must be at least 1"),
        ("luffy", "algo.demonstrations=0", r"needs the signal 'demonstration': .*\(algo.demonstrations\)"),
        (
            "grpo",
            "algo.demonstrations=1",
            "clip_loss takes the tokens of a demonstration for the policy's own; use a loss",
        ),
        ("spear", "+algo.replay.loss.dual=1", r"unknown setting of algo\.replay\.loss 'dual'"),
        ("spear", "algo.replay.loss._target_=algorithms.losses.gspo_loss", "unknown setting of algo.replay.loss"),
        ("opd", "algo.kl_in=loss", r"needs the token signal 'token_reward': .*\(algo.kl_in=reward\)"),
        ("opd", "algo.kl_coef=0", "algo.reference=FOLDER is the model that KL is measured against, and with"),
        ("luffy", "agent/player=candidates", "a demonstration is written as text, and agent.player=candidates chooses"),
    ],
)
def test_an_invalid_setting_is_refused(name: str, override: str, message: str) -> None:
    with pytest.raises((ValueError, UnknownNameError), match=message):
        check(configured(name, override, judge="http://127.0.0.1:1/v1"))


@pytest.mark.parametrize("name", JUDGED)
def test_a_judge_that_cannot_be_reached_raises_at_once(name: str) -> None:
    with pytest.raises(EndpointError, match=r"m at http://127\.0\.0\.1:1/v1"):
        check(configured(name, judge="http://127.0.0.1:1/v1"))


class Unspoken(UntrainedSignal):
    """A signal that does not declare its columns."""

    def __init__(self, context: SignalContext) -> None:
        self.context = context

    def measure(self, rollouts: RolloutBatch) -> Measurement:
        return Measurement({"prm": rollouts.table.reward})


def test_a_signal_need_not_declare_its_columns() -> None:
    def picky(table: TurnTable) -> Any:
        return table.signal("anything")

    config = configured("grpo")
    parts = Parts.of(config, Method.of(config))
    with EnvPool(Corridors().make, 1) as pool:
        settings = (parts.learner, parts.config, pool, 0)
        assert set(check_parts(parts.agent, {"mine": Unspoken}, picky, *settings)) == {Need.ADMISSIBLE}  # of the agent
        with pytest.raises(MissingSignalError):
            check_parts(parts.agent, {}, picky, *settings)
        assert set(check_parts(parts.agent, {}, grpo, *settings)) == {Need.ADMISSIBLE}


# -- the environment --------------------------------------------------------------------------------------------------
class Mute(Corridor):
    """A corridor without admissible actions and without snapshots."""

    def _extra(self, **more: Any) -> Info:
        return {**super()._extra(**more), "admissible": None}

    def _save(self) -> Any:
        raise NotImplementedError("corridors forget")


@pytest.mark.parametrize("need", [need for need in Need if need is not Need.EXPERT])  # of the tasks, not of an episode
def test_an_environment_that_does_not_meet_a_need_is_refused_by_name(need: Need) -> None:
    with EnvPool(lambda: Mute(8), 2) as pool, pytest.raises(ValueError, match=f"algo.mine needs {need}, and test/Corr"):
        check_environment({need: "algo.mine"}, [corridor(2), corridor(3)], pool)


def test_an_environment_that_meets_all_needs_passes() -> None:
    tasks = SearchTasks(embedded_people=48, train_tasks=20, valid_tasks=8)
    with EnvPool(tasks.make, 3) as pool:
        chosen = [tasks.task("train", task_id) for task_id in tasks.manifest("train").ids[:3]]
        check_environment(dict.fromkeys(Need, "algo.mine"), chosen, pool)


def test_one_environment_is_enough_for_all_tasks() -> None:
    made: list[Corridor] = []

    def make() -> Corridor:
        made.append(Corridor(8))
        return made[-1]

    with EnvPool(make, 1) as pool:
        check_environment({Need.ADMISSIBLE: "algo.mine", Need.SNAPSHOTS: "algo.mine"}, [corridor(2), corridor(3)], pool)
    assert len(made) == 1


def test_tasks_that_fail_are_left_to_the_run() -> None:
    tasks = [corridor(2, fault="reset"), corridor(2, fault="step"), corridor(2)]
    with EnvPool(lambda: Corridor(8), 3) as pool:
        check_environment({Need.ADMISSIBLE: "algo.mine", Need.SNAPSHOTS: "algo.mine"}, tasks, pool)
        with pytest.raises(ValueError, match=r"algo\.mine needs rewards of single turns"):
            check_environment({Need.TURN_REWARDS: "algo.mine"}, tasks, pool)
    with EnvPool(lambda: Corridor(8), 1) as pool:
        check_environment(dict.fromkeys(Need, "algo.mine"), tasks[:1], pool)


def test_replayed_turns_have_the_units_of_the_batchs_loss() -> None:
    config = configured("spear")
    OmegaConf.set_struct(config, False)
    config.algo.replay.loss = configured("gspo").algo.loss
    with pytest.raises(ValueError, match=r"algo\.loss takes turns and algo\.replay\.loss takes episodes"):
        check(config)
    config.algo.loss = config.algo.replay.loss
    check(config)
