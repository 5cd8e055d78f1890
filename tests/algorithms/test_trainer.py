"""The whole loop on a small environment: it learns, resumes bit for bit, and leaves no incomplete files."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.agent import PolicyAgent
from agents.policies.base import Sampling
from agents.policies.local import LocalPolicy
from agents.policies.lora import Lora
from agents.policies.pretrained import Pretrained
from agents.prompts import Transcript
from agents.record import Record, play_again, read_record, write_record
from agents.rollout import Job, rollout
from algorithms import checkpoint as checkpoint_module
from algorithms import trainer as trainer_module
from algorithms.checkpoint import checkpoints, save_checkpoint
from algorithms.correction import Correction
from algorithms.estimators.gigpo import gigpo
from algorithms.filters import faults
from algorithms.learner import Learner, LearnerConfig, Objective
from algorithms.losses import clip_loss
from algorithms.signals.base import Measurement, SignalContext, UntrainedSignal, make_signals
from algorithms.trainer import Trainer, TrainerConfig
from algorithms.turn_table import TurnTable
from algorithms.warm_start import WarmStart, warm_start
from envs import files
from envs.core import hold_out
from envs.pool import EnvPool
from scripts.agents import checkpoint_of
from tests.agents.corridors import Corridors, corridor
from tests.agents.toys import Wanderer, random_policy

SAMPLING = Sampling(1.0, 6)


class Quiet:
    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []

    def phase(self, name: str, total: int | None = None) -> None: ...

    def advance(self, status: str = "") -> None: ...

    def update(self, update: int, metrics: dict[str, float]) -> None:
        self.metrics.append((update, metrics))


def learner_config(**changes) -> LearnerConfig:
    """`changes` are of the configuration or of its objective."""
    objective = {f.name: changes.pop(f.name) for f in fields(Objective) if f.name in changes}
    settings = {
        "learning_rate": 2e-3, "final_learning_rate": 1e-3, "warmup_updates": 0, "weight_decay": 0.0, "grad_clip": 1.0,
        "minibatches": 2, "micro_batch_tokens": 2048, "gradient_checkpointing": False, "precision": "float32",
        "temperature": 1.0,
    }  # fmt: skip
    return LearnerConfig(Objective(**{"loss": clip_loss, **objective}), **{**settings, **changes})


class Untaught(Corridors):
    """Without an expert, random play is cloned: of many episodes, a policy that opens every door now and then."""

    def expert(self) -> None:
        return None


def warm_policy(pool: EnvPool, steps: int = 45, task_set: Corridors | None = None, episodes: int = 24) -> LocalPolicy:
    policy = random_policy()
    clone(policy, pool, steps, task_set, episodes)
    return policy


def clone(policy: LocalPolicy, pool: EnvPool, steps: int, task_set=None, episodes: int = 24) -> None:
    config = WarmStart(
        episodes=episodes, noise=0.2, steps=steps, tokens_per_step=1024,
        max_turns=8, matrix_lr=0.02, other_lr=0.01,
    )  # fmt: skip
    tasks = [replace(corridor(2 + n % 3), seed=n) for n in range(episodes)]  # random play draws by the seed
    warm_start(policy, Transcript(), task_set or Corridors(), tasks, pool, config, 0, Quiet())


def make_trainer(
    run: Path, pool: EnvPool, policy: LocalPolicy, updates: int, estimator=gigpo, signals=None, player=PolicyAgent,
    reference=None, replay=None, **changes,
) -> Trainer:  # fmt: skip
    manifest = changes.pop("manifest", Corridors().manifest("train"))
    trainer_settings = {"groups": 4, "group_size": 4, "dynamic_sampling": False, "tree_expansion": None}
    trainer_settings |= {"filters": {"faults": faults}}
    trainer_settings |= {"checkpoint_every": 2, "eval_every": 0, "record_every": 2, "record_keep": None}
    trainer_settings |= {k: changes.pop(k) for k in list(changes) if k in TrainerConfig.__dataclass_fields__}
    config = TrainerConfig(updates=updates, max_turns=8, episode_timeout=60.0, **trainer_settings)
    learning = learner_config(**changes)
    agent = player(policy, Transcript(), SAMPLING, torch.Generator().manual_seed(0))
    context = SignalContext(
        policy.model, agent, pool, torch.float32, learning.micro_batch_tokens, learning.grad_clip, config.max_turns, 0
    )
    signals = make_signals(signals or {}, context)
    learner = Learner(policy.model, learning, reference=reference)
    run.mkdir(exist_ok=True)
    return Trainer(
        run, Corridors(), manifest, pool, agent, signals, estimator, learner, config, 0,
        lambda: ({"eval/valid/success": 0.5}, 0.5), Quiet(), replay=replay,
    )  # fmt: skip


@pytest.fixture
def pool():
    with EnvPool(Corridors().make, 16) as pool:
        yield pool


def success(policy: LocalPolicy, pool: EnvPool, player=PolicyAgent) -> float:
    agent = player(policy, Transcript(), SAMPLING, torch.Generator().manual_seed(9))
    jobs = [Job(corridor(2 + i % 3), i) for i in range(96)]
    return float(np.mean([e.success for e in rollout(agent, pool, jobs)]))


def test_cloning_teaches_the_corridor(pool: EnvPool) -> None:
    assert success(random_policy(), pool) < 0.1
    assert success(warm_policy(pool, steps=120), pool) > 0.9


def test_reinforcement_learning_improves_a_clone_of_random_play(tmp_path: Path, pool: EnvPool) -> None:
    policy = warm_policy(pool, steps=120, task_set=Untaught(), episodes=300)
    before = success(policy, pool)
    rates = {"learning_rate": 1e-3, "final_learning_rate": 5e-4}  # at twice that, some starts of GiGPO collapse
    make_trainer(tmp_path / "run", pool, policy, 60, gigpo, groups=6, group_size=8, **rates).train()
    assert success(policy, pool) > max(0.9, before)


def without_times(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "perf/"))} for line in lines]


@pytest.mark.parametrize("kl_coef", [0.0, 0.05])
def test_a_resumed_run_of_2k_updates_equals_an_uninterrupted_one(tmp_path: Path, pool: EnvPool, kl_coef: float) -> None:
    """Killed after update 3, when only update 2 was saved: update 3 comes out the same, and so does the rest."""
    whole = warm_policy(pool)
    make_trainer(tmp_path / "whole", pool, whole, 5, kl_coef=kl_coef).train()
    killed = make_trainer(tmp_path / "parts", pool, warm_policy(pool), 5, kl_coef=kl_coef)
    killed._evaluate()
    killed._save()
    killed._log(killed._update())
    killed._log(killed._update())
    killed._save()
    killed._log(killed._update())
    with killed.metrics_file.open("a") as file:
        file.write('{"update": 4, "half a li')
    resumed = make_trainer(tmp_path / "parts", pool, warm_policy(pool, steps=1), 5, kl_coef=kl_coef)
    resumed.resume()
    assert resumed.update == 2
    resumed.train()
    assert resumed.learner.optimizer.param_groups[0]["lr"] == pytest.approx(1.2e-3)  # a fifth before 1e-3, from 2e-3
    assert without_times(tmp_path / "parts/metrics.jsonl") == without_times(tmp_path / "whole/metrics.jsonl")
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.policy.model.state_dict()[name]), name


def test_an_estimator_knows_the_weights_of_a_correction(tmp_path: Path, pool: EnvPool) -> None:
    """The batch is corrected once, before the estimator, and the learner uses the same weights."""
    seen: list[np.ndarray] = []

    def estimator(table: TurnTable) -> np.ndarray:
        seen.append(table.token_signals["importance_weight"])
        return gigpo(table)

    correction = Correction(low=0.5, high=1.0 - 1e-9, normalize=False)
    make_trainer(tmp_path / "run", pool, random_policy(), 1, estimator, correction=correction).train()
    (line,) = [line for line in without_times(tmp_path / "run/metrics.jsonl") if "train/loss" in line]
    assert len(seen[0]) == line["tokens/sampled"]
    np.testing.assert_allclose(seen[0], 1.0, atol=1e-4)  # the model itself has sampled
    assert line["mismatch/max_ratio"] < 1.0001
    assert line["mismatch/bounded"] == pytest.approx((seen[0] == 1.0 - 1e-9).mean())
    assert line["mismatch/rejected"] == 0.0


def test_a_run_may_end_by_the_steps_taken_in_environments_and_resumes_there(tmp_path: Path, pool: EnvPool) -> None:
    """The learning rate falls with them; what signals play counts."""
    changes = {"env_steps": 400, "checkpoint_every": 1, "warmup_updates": 0, "final_learning_rate": 0.0}

    class Plays(UntrainedSignal):
        def measure(self, batch):
            return Measurement(metrics={"signal/env_steps": 50.0})

    signals = {"plays": lambda _: Plays()}
    whole = make_trainer(tmp_path / "whole", pool, warm_policy(pool), None, signals=signals, **changes)
    whole.train()
    lines = [line for line in without_times(tmp_path / "whole/metrics.jsonl") if "rollout/env_steps" in line]
    steps = np.cumsum([line["rollout/env_steps"] + line["signal/env_steps"] for line in lines])
    assert len(lines) > 2
    assert steps[-2] < 400 <= steps[-1] == whole.env_steps
    rates = [line["train/learning_rate"] for line in lines]
    assert rates == pytest.approx([2e-3 * (1 - before / 400) for before in [0, *steps[:-1]]])
    killed = make_trainer(tmp_path / "parts", pool, warm_policy(pool), None, signals=signals, **changes)
    killed._evaluate()
    killed._log(killed._update())
    killed._save()
    resumed = make_trainer(tmp_path / "parts", pool, warm_policy(pool, steps=1), None, signals=signals, **changes)
    resumed.resume()
    resumed.train()
    assert without_times(tmp_path / "parts/metrics.jsonl") == without_times(tmp_path / "whole/metrics.jsonl")
    with pytest.raises(ValueError, match="a run needs an end"):
        make_trainer(tmp_path / "endless", pool, warm_policy(pool, steps=1), None)


def test_with_adapters_kl_is_measured_to_the_warm_start_also_after_a_resume(tmp_path: Path, pool: EnvPool) -> None:
    pytest.importorskip("peft")
    bare = random_policy()
    save_checkpoint(tmp_path / "model", bare.model, bare.tokenizer)
    start = Pretrained(lora=Lora(rank=4))
    cloned = start.load(tmp_path / "model", trained=True)
    clone(cloned, pool, steps=10)
    save_checkpoint(tmp_path / "cloned", cloned.model, cloned.tokenizer)

    def any_advantage(table: TurnTable) -> np.ndarray:
        return np.random.default_rng(len(table)).normal(size=len(table))

    settings = {
        "estimator": any_advantage,
        "kl_coef": 0.05,
        "minibatches": 1,
        "checkpoint_every": 1,
        "final_learning_rate": 2e-3,
    }
    for policy, run in ((cloned, "whole"), (start.load(tmp_path / "cloned", trained=True), "parts")):
        make_trainer(tmp_path / run, pool, policy, 3 if run == "whole" else 1, **settings).train()
    resumed = make_trainer(tmp_path / "parts", pool, start.load(tmp_path / "model", trained=True), 3, **settings)
    resumed.resume()
    resumed.train()
    kls = [
        [line["train/kl"] for line in without_times(tmp_path / run / "metrics.jsonl") if "train/kl" in line]
        for run in ("whole", "parts")
    ]
    assert abs(kls[0][0]) < 1e-9
    assert kls[0][1] > 1e-5
    assert kls[0] == kls[1]


def test_a_run_keeps_its_first_its_best_and_its_newest_checkpoint(tmp_path: Path, pool: EnvPool) -> None:
    trainer = make_trainer(tmp_path / "run", pool, warm_policy(pool), 6)
    scores = iter([0.2, 0.9, 0.4])
    trainer.evaluate = lambda: ({"eval/valid/success": (s := next(scores))}, s)
    trainer.config = trainer.config.__class__(**{**trainer.config.__dict__, "eval_every": 3})
    trainer.train()
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["update-000000", "update-000003", "update-000006"]
    assert trainer.best == (0.9, 3)
    loaded = Pretrained().load(checkpoints(tmp_path / "run")[-1], torch.device("cpu"))
    for name, weight in trainer.policy.model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name]), name


def test_without_ranking_the_newest_checkpoint_is_the_best(tmp_path: Path, pool: EnvPool) -> None:
    run = tmp_path / "run"
    trainer = make_trainer(run, pool, warm_policy(pool), 3)
    trainer.evaluate = lambda: ({"eval/valid/success": 0.5}, None)
    trainer.train()
    assert [p.name for p in checkpoints(run)] == ["update-000000", "update-000003"]
    assert checkpoint_of(str(run)) == str(run / "checkpoints/update-000003")
    resumed = make_trainer(run, pool, warm_policy(pool, steps=1), 4)
    resumed.resume()
    assert (resumed.update, resumed.best) == (3, None)


def test_a_failed_save_leaves_the_old_checkpoints_and_nothing_half_written(tmp_path: Path, pool: EnvPool) -> None:
    trainer = make_trainer(tmp_path / "run", pool, warm_policy(pool), 2)
    trainer.train()
    before = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    trainer.update = 9
    trainer.rng.bit_generator.state  # noqa: B018
    trainer.policy.tokenizer = None  # what a save needs is gone half way through
    with pytest.raises(AttributeError):
        trainer._save()
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == before


@pytest.mark.parametrize("in_background", [False, True])
def test_a_best_update_that_is_due_anyway_is_saved_once_and_only_then_are_others_pruned(
    tmp_path: Path, pool: EnvPool, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    trainer = make_trainer(
        tmp_path / "run", pool, random_policy(), 2, checkpoint_every=1, eval_every=1, groups=2, group_size=2,
        checkpoint_async=in_background,
    )  # fmt: skip
    trainer.evaluate = lambda: ({"eval/valid/success": 0.1 * trainer.update}, 0.1 * trainer.update)
    done: list[str] = []
    save, clear = checkpoint_module.save_checkpoint, trainer_module.prune
    monkeypatch.setattr(checkpoint_module, "save_checkpoint", lambda f, *a: (save(f, *a), done.append(f.name)))
    monkeypatch.setattr(trainer_module, "prune", lambda *a: (clear(*a), done.append("prune")))
    trainer.train()
    assert done == ["update-000000", "prune", "update-000001", "prune", "update-000002", "prune"]


@pytest.mark.parametrize("resumes", [False, True])
def test_a_run_that_ended_before_its_first_checkpoint_starts_again(tmp_path: Path, pool: EnvPool, resumes) -> None:
    def trainer() -> Trainer:
        return make_trainer(tmp_path / "run", pool, random_policy(), 1, checkpoint_every=1, groups=2, group_size=2)

    dead = trainer()
    dead._evaluate()
    with dead.metrics_file.open("a") as file:
        file.write('{"update": 0, "half')
    second = trainer()
    if resumes:
        second.resume()
    second.train()
    lines = [json.loads(line)["update"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines == [0, 1, 1]


def test_files_written_after_the_newest_checkpoint_are_removed(tmp_path: Path, pool: EnvPool) -> None:
    run = tmp_path / "run"
    make_trainer(run, pool, random_policy(), 2, checkpoint_every=2, groups=2, group_size=2).train()
    resumed = make_trainer(run, pool, random_policy(), 4, checkpoint_every=2, groups=2, group_size=2)
    resumed.resume()
    for _ in range(2):  # and it dies before update 4 is saved
        resumed._log(resumed._update())
    assert (run / "episodes/update-000004.jsonl.gz").exists()
    shutil.copytree(run / "checkpoints/update-000000", run / "checkpoints/update-000001")  # died before it was pruned
    resumed.resume()
    assert [path.name for path in (run / "episodes").iterdir()] == ["update-000002.jsonl.gz"]
    assert max(line["update"] for line in without_times(run / "metrics.jsonl")) == 2
    assert [path.name for path in checkpoints(run)] == ["update-000000", "update-000002"]


def test_a_checkpoint_that_was_being_replaced_is_found_again(tmp_path: Path, pool: EnvPool) -> None:
    run = tmp_path / "run"
    make_trainer(run, pool, random_policy(), 2, groups=2, group_size=2).train()
    newest = checkpoints(run)[-1]
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    newest.rename(newest.with_name(f".{newest.name}.{files._machine()}-{int(dead.stdout)}-00000000.old"))
    assert checkpoints(run)[-1] == newest


def test_stopping_saves_the_update_that_was_under_way(tmp_path: Path, pool: EnvPool) -> None:
    trainer = make_trainer(tmp_path / "run", pool, warm_policy(pool), 50)
    log = trainer._log

    def stop_after_three(metrics):
        log(metrics)
        trainer.stopping = trainer.update == 3

    trainer._log = stop_after_three
    trainer.train()
    assert checkpoints(tmp_path / "run")[-1].name == "update-000003"


def test_dynamic_sampling_learns_from_differing_groups_only(tmp_path: Path, pool: EnvPool) -> None:
    trainer = make_trainer(tmp_path / "run", pool, random_policy(), 1, player=Wanderer, dynamic_sampling=True, groups=3)
    done = trainer._roll_out()
    groups = {}
    for episode in done.episodes:
        groups.setdefault(episode.group, []).append(episode.total_reward)
    assert len(groups) == 3
    assert all(len(rewards) == 4 and len(set(rewards)) > 1 for rewards in groups.values())
    assert len(done.played) >= len(done.episodes)


def test_every_task_is_drawn_once_an_epoch_in_an_order_of_the_seed(tmp_path: Path, pool: EnvPool) -> None:
    trainer = make_trainer(tmp_path / "run", pool, random_policy(), 1)
    first, second = ([t.id for t in trainer._next_tasks(24)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(Corridors().manifest("train").ids)
    assert first != second
    again = make_trainer(tmp_path / "again", pool, random_policy(), 1)
    assert [t.id for n in (5, 19) for t in again._next_tasks(n)] == first


def test_tasks_that_are_held_out_are_never_drawn(tmp_path: Path, pool: EnvPool) -> None:
    training, held_out = hold_out(Corridors().manifest("train"), 5)
    trainer = make_trainer(tmp_path / "run", pool, random_policy(), 1, manifest=training)
    drawn = [task.id for task in trainer._next_tasks(3 * len(training.ids))]
    assert set(drawn) == set(training.ids)
    assert not set(drawn) & set(held_out.ids)


def test_the_recorded_batch_has_the_advantages_that_view_shows(tmp_path: Path, pool: EnvPool) -> None:
    make_trainer(tmp_path / "run", pool, warm_policy(pool), 2, partial(gigpo, invalid_penalty=0.0)).train()
    episodes = read_record(tmp_path / "run/episodes/update-000002.jsonl.gz").episodes
    assert len(episodes) == 16
    assert all(isinstance(turn.advantage, float) for e in episodes for turn in e.turns)


def test_the_record_has_the_statistics_of_each_token(tmp_path: Path, pool: EnvPool) -> None:
    make_trainer(tmp_path / "run", pool, warm_policy(pool), 3, record_every=1, record_keep=2, minibatches=2).train()
    files = sorted((tmp_path / "run/episodes").iterdir())
    assert [file.name for file in files] == ["update-000002.jsonl.gz", "update-000003.jsonl.gz"]
    record = read_record(files[-1])
    assert (record.update, record.split, record.kind) == (3, "train", "training")
    assert not any(turn.prompt_ids for e in record.episodes for turn in e.turns)
    assert [step["name"] for step in record.steps][-1] == "advantage"
    for name in ("entropy", "mismatch"):
        for episode, of_turns in zip(record.episodes, record.of_tokens[name], strict=True):
            assert [len(turn.logprobs) for turn in episode.turns] == [len(values) for values in of_turns]
    known = [value for rows in record.of_tokens["mismatch"] for row in rows for value in row if value is not None]
    entropies = [value for rows in record.of_tokens["entropy"] for row in rows for value in row if value is not None]
    assert 0 < len(known) < len(entropies)  # of the first of two steps
    assert max(map(abs, known)) < 1e-4  # the policy samples with the weights that learn
    assert min(entropies) >= 0


def test_prompts_can_be_made_again_from_a_record(tmp_path: Path, pool: EnvPool) -> None:
    trainer = make_trainer(tmp_path / "run", pool, warm_policy(pool), 1)
    episodes = trainer._roll_out().episodes
    write_record(tmp_path / "update-000001.jsonl.gz", Record(episodes))
    kept = read_record(tmp_path / "update-000001.jsonl.gz").episodes
    again = play_again(kept, trainer.agent, Corridors(), pool)
    assert [[turn.prompt_ids for turn in e.turns] for e in again] == [[t.prompt_ids for t in e.turns] for e in episodes]
    assert any(len(e.turns) > 1 for e in again)
    kept[0].turns[0].observation = "another place"
    with pytest.raises(ValueError, match="episode 0, turn 0: the environment shows something else"):
        play_again(kept, trainer.agent, Corridors(), pool)


def test_kl_in_the_reward_reaches_the_estimator(tmp_path: Path, pool: EnvPool) -> None:
    tables: list[TurnTable] = []

    def seen(table: TurnTable) -> np.ndarray:
        tables.append(table)
        return np.random.default_rng(len(tables)).normal(size=len(table))

    trainer = make_trainer(
        tmp_path / "run", pool, random_policy(), 2, seen, groups=2, group_size=2,
        kl_coef=0.5, kl_in="reward", kl_estimator="k1",
    )  # fmt: skip
    trainer.train()
    first, second = (table.token_signal("token_reward") for table in tables)
    np.testing.assert_allclose(first, 0.0, atol=1e-5)  # the policy is still its own reference
    assert np.abs(second).max() > 1e-3
    measured = [line["train/kl"] for line in without_times(tmp_path / "run/metrics.jsonl") if "train/kl" in line]
    np.testing.assert_allclose(measured, [-first.mean() / 0.5, -second.mean() / 0.5])
