"""Rollouts and updates: time outside of the engine, the gain of cached keys and values, and a comparison with TRL.

    python -m benchmarks.rollouts                   # all parts; --parts kv,trl for some; --output FILE

Everything runs on ALFWorld's embedded games with a Llama of 4.2M random weights in float32. The games ignore the action
and play a fixed script, and every completion has `--new-tokens` tokens. So all sides have the same prompts, tokens and
turns. The sides of a comparison are measured alternately; a ratio is that of two neighbouring measurements, reported as
the median with the range.

orchestration   Seconds of a rollout outside of the engine (environments, prompts, parsing, bookkeeping), divided by the
                seconds of the engine for the same requests, which are recorded and sent again. For the model of
                transformers and, if it is installed, for vLLM.
kv              The rollout with keys and values cached between turns, compared with reading the whole history in every
                turn: the same policy, with its sessions released before each request.
trl             Turns per second from the first observation to a training batch, compared with TRL's `GRPOTrainer`:
                `environment_factory` (its own loop, in which the action is a tool call) and `rollout_func` (our loop
                over its generation, all episodes at a time, on ids). TRL has no gradient checkpointing, no bf16, one
                batch of all episodes, a minimal chat template, and a response template that reads any answer as a
                call. Its vLLM mode is not compared: 1.16 supports vLLM up to 0.31.
update          One GRPO update on the same batch, each side in its own process. Sequences, masks, advantages, old
                log-probabilities, clipping, float32 and AdamW are the same, and the gradient's norm must be equal.
                TRL's `train()` gets the batch instead of a rollout, and keeps its own AdamW (fused). A micro-batch has
                as many sequences as TRL's, or as many padded tokens if sequences are shorter. Memory is the peak of the
                process minus its memory before the optimiser was created (Linux).

TRL needs `pip install trl` (1.16), which is not a dependency of polyturn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from agents.agent import PolicyAgent
from agents.episode import Episode
from agents.policies.base import Completion, Policy, Request, Sampling
from agents.policies.local import LocalPolicy
from agents.policies.tiny import BOS, EOS, build_tokenizer
from agents.prompts import ACT, Transcript
from agents.quoting import encode
from agents.rollout import Job, rollout
from agents.samples import Sample, build_samples
from algorithms.batches import LENGTH_STEP
from algorithms.estimators.grpo import grpo
from algorithms.learner import Learner, LearnerConfig, Objective
from algorithms.losses import clip_loss
from algorithms.turn_table import TurnTable
from envs.alfworld.engine import Engine
from envs.alfworld.env import ALFWorldEnv
from envs.alfworld.game import GAME_FILE, parse_game
from envs.alfworld.generate import generate_game
from envs.core import Info, Task, UnknownNameError
from envs.files import write_whole
from envs.pool import EnvPool

PARTS = ("orchestration", "kv", "trl", "update")
TARGETS = {"orchestration": "≤ 10 %", "kv": "≥ 2.5×", "trl": "≥ 2×", "update": "≥ 1.3×", "update memory": "< 1"}
VOCABULARY, CONTEXT = 4096, 2048
LEARNING_RATE = 1e-6
UPDATES = 3  # in a process; the first is a warm-up

# TRL's tools, rendered as the ids that `Transcript` makes: <bos> observation <act> action <eos> observation <act> …
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    f"{{% if m.role == 'user' %}}{BOS}{{{{ m.content }}}}"
    f"{{% elif m.role == 'tool' %}}{EOS}{{{{ m.content }}}}"
    f"{{% else %}}{ACT}{{{{ m.content or '' }}}}{{% for c in m.tool_calls or [] %}}"
    "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{ACT}{{% endif %}}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor_pattern": f"(?={ACT})",
    "fields": {
        "tool_calls": {
            "open": ACT,
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "act", "arguments": {"action": "{content}"}}},
        }
    },
}


@dataclass(frozen=True)
class Size:
    """The size of the measurements."""

    episodes: int  # all at a time
    group: int  # attempts at each game
    turns: int
    new_tokens: int  # of every completion
    micro_batch: int  # sequences in one forward and backward pass
    repeats: int


# -- tasks and model --------------------------------------------------------------------------------------------------
class ScriptedALFWorld(ALFWorldEnv):
    """ALFWorld that ignores the action, and plays the next command of the task's script."""

    def _begin(self, task: Any, seed: int | None) -> tuple[str, Info]:
        self._script = iter(task.payload["script"])
        return super()._begin(task, seed)

    def _act(self, action: str) -> tuple[str, float, bool, Info]:
        del action
        return super()._act(next(self._script))


@dataclass(frozen=True)
class World:
    """The tasks, and a folder with the model and its tokenizer, which all sides share."""

    size: Size
    tasks: list[Task]
    folder: Path

    def policy(self) -> LocalPolicy:
        """The model as a policy. Only the token limit ends a completion."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        policy = LocalPolicy(model.eval(), tokenizer, self.folder)
        policy.stop_ids = []
        return policy

    def play(self, policy: Policy, turns: int | None = None) -> list[Episode]:
        """All episodes, sampled with the same seed each time."""
        generator = torch.Generator(policy.device).manual_seed(0)
        prompter = Transcript()
        agent = PolicyAgent(policy, prompter, Sampling(1.0, self.size.new_tokens), generator)
        jobs = [Job(task, group) for group, task in enumerate(self.tasks) for _ in range(self.size.group)]
        with EnvPool(self.make, self.size.episodes) as pool:
            return rollout(agent, pool, jobs, max_turns=turns or self.size.turns)

    def make(self) -> ScriptedALFWorld:
        return ScriptedALFWorld(max_turns=self.size.turns + 1)


def make_world(size: Size, folder: Path) -> World:
    """Generate games and their scripts, and save a model with a tokenizer for the texts of the games."""
    tasks, texts = [], []
    for number in range(size.episodes // size.group):
        path = folder / f"game-{number}" / GAME_FILE
        path.parent.mkdir()
        content = generate_game(number).content
        path.write_text(json.dumps(content), encoding="utf-8")
        script, observations = _script(Engine(parse_game(str(path), content)), size.turns, random.Random(number))
        texts += observations
        tasks.append(Task(f"game-{number}", "polyturn/ALFWorld-v0", payload={"path": str(path), "script": script}))
    # Unused words fill the vocabulary, so every id that can be sampled is a token.
    known = len(build_tokenizer(texts))
    tokenizer = build_tokenizer([*texts, *(f"word{i:04d}x" for i in range(VOCABULARY - known))])
    tokenizer.pad_token, tokenizer.chat_template = EOS, CHAT_TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    return World(size, tasks, folder / "model")


def _script(engine: Engine, turns: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """A sequence of admissible commands that does not win, and its observations."""
    script: list[str] = []
    observations = [engine.reset()]
    while len(script) < turns:
        before, command = engine.snapshot(), rng.choice(engine.admissible)
        text, _, done = engine.step(command)
        if done:
            engine.restore(before)
            continue
        script.append(command)
        observations.append(text)
    return script, observations


# -- orchestration ----------------------------------------------------------------------------------------------------
class RecordingPolicy:
    """Wraps a policy, and records its requests, its completions and its seconds."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tokenizer, self.context_length, self.device = policy.tokenizer, policy.context_length, policy.device
        self.calls: list[list[Request] | int] = []  # requests, or the session that was released
        self.sampled: list[list[int]] = []
        self.seconds = 0.0

    def generate(self, requests: Sequence[Request], sampling: Sampling, generator: torch.Generator) -> list[Completion]:
        start = time.perf_counter()
        answers = self.policy.generate(requests, sampling, generator)
        self.seconds += time.perf_counter() - start
        self.calls.append(list(requests))
        self.sampled += [answer.ids for answer in answers]
        return answers

    def release(self, session: int) -> None:
        start = time.perf_counter()
        self.policy.release(session)
        self.seconds += time.perf_counter() - start
        self.calls.append(session)

    def replay(self, sampling: Sampling) -> tuple[float, float]:
        """Send the same requests again: the seconds, and the share of equal completions."""
        generator = torch.Generator(self.device).manual_seed(0)
        sampled: list[list[int]] = []
        start = time.perf_counter()
        for call in self.calls:
            if isinstance(call, int):
                self.policy.release(call)
            else:
                sampled += [answer.ids for answer in self.policy.generate(call, sampling, generator)]
        seconds = time.perf_counter() - start
        return seconds, statistics.mean(a == b for a, b in zip(sampled, self.sampled, strict=True))


def orchestration(world: World, policy: Policy) -> dict[str, Any]:
    """The time outside of the engine as a share of the engine's time, and the engine's speed."""
    world.play(policy, turns=2)
    shares, wholes, engines, same = [], [], [], []
    for _ in range(world.size.repeats):
        policy.sync()  # clears the prefixes that an engine caches
        meter = RecordingPolicy(policy)
        start = time.perf_counter()
        world.play(meter)  # type: ignore[arg-type]
        seconds = time.perf_counter() - start
        policy.sync()
        alone, equal = meter.replay(Sampling(1.0, world.size.new_tokens))
        shares.append((seconds - meter.seconds) / alone)
        wholes.append(seconds / alone)
        engines.append(world.size.episodes * world.size.turns * world.size.new_tokens / alone)
        same.append(equal)
    return {
        "share": spread(shares),
        "rollout_over_engine": spread(wholes),
        "engine_tokens_per_s": spread(engines),
        "same_ids": min(same),
    }


def measure_orchestration(world: World, note: Callable[[str], None]) -> dict[str, Any]:
    """By engine: the model of transformers, and vLLM if it is installed."""
    found = {"hf": orchestration(world, world.policy())}
    if missing := [name for name in ("vllm", "agents.policies.vllm") if not find_spec(name)]:
        note(f"orchestration with vLLM was left out: no {' and no '.join(missing)}")
    else:
        found["vllm"] = in_new_process(_orchestration_vllm, world)
    return found


def _orchestration_vllm(world: World) -> dict[str, Any]:
    from agents.policies.vllm import VllmPolicy

    return orchestration(world, VllmPolicy(world.policy()))


# -- kept keys and values ---------------------------------------------------------------------------------------------
class UncachedPolicy(RecordingPolicy):
    """The same policy without a cache between the requests of a session."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, generator: torch.Generator) -> list[Completion]:
        for request in requests:
            self.policy.release(request.session)
        return super().generate(requests, sampling, generator)


def measure_kv(world: World, note: Callable[[str], None]) -> dict[str, Any]:
    """Turns per second with and without the cache, and their ratio."""
    del note
    policy = world.policy()
    sides = {
        "kept": lambda turns: world.play(policy, turns),
        "read_again": lambda turns: world.play(UncachedPolicy(policy), turns),  # type: ignore[arg-type]
    }
    seconds = alternate(sides, world.size)
    return {**_turns_per_s(seconds, world.size), "ratio": ratio(seconds["read_again"], seconds["kept"])}


# -- TRL --------------------------------------------------------------------------------------------------------------
class Tool:
    """The environment in TRL's form: its public methods are tools."""

    def __init__(self, world: World) -> None:
        self._tasks = {task.id: task for task in world.tasks}
        self._env = world.make()
        self._rewards = 0.0

    def reset(self, game: str, **_: Any) -> str:
        self._rewards = 0.0
        return self._env.reset(options={"task": self._tasks[game]})[0]

    def act(self, action: str) -> str:
        """Play a command.

        Args:
            action: the command, as one would type it
        """
        observation, reward, *_ = self._env.step(action)
        self._rewards += float(reward)
        return observation

    def get_reward(self) -> float:
        return self._rewards


class TurnLoop:
    """A `rollout_func`: all episodes at a time, on ids, without encoding any text twice."""

    def __init__(self, world: World) -> None:
        self.world, self.turns = world, world.size.turns
        self.environments = [Tool(world) for _ in range(world.size.episodes)]
        self.encode = lru_cache(maxsize=100_000)(encode)

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        tokenizer = trainer.processing_class
        texts = [BOS + env.reset(game) + ACT for env, game in zip(self.environments, prompts, strict=True)]
        first = [list(self.encode(tokenizer, text)) for text in texts]
        rest: list[list[int]] = [[] for _ in first]
        mask: list[list[int]] = [[] for _ in first]
        for turn in range(self.turns):
            ids = [a + b for a, b in zip(first, rest, strict=True)]
            answers, _ = trainer._generate_single_turn(ids, None, {}, 1)
            for row, answer in enumerate(answers):
                seen = self.environments[row].act(tokenizer.decode(answer))
                after = self.encode(tokenizer, EOS + seen + ACT) if turn < self.turns - 1 else ()
                rest[row] += [*answer, *after]
                mask[row] += [1] * len(answer) + [0] * len(after)
        rewards = [env.get_reward() for env in self.environments]
        return {"prompt_ids": first, "completion_ids": rest, "logprobs": None, "env_mask": mask, "earned": rewards}


def measure_trl(world: World, note: Callable[[str], None]) -> dict[str, Any]:
    """Turns per second of the three loops, and the ratios to those of TRL. Empty without TRL."""
    if not find_spec("trl"):
        note("trl was left out: it is not installed")
        return {}
    size, policy, loop = world.size, world.policy(), TurnLoop(world)
    games = [task.id for task in world.tasks for _ in range(size.group)]
    conversation = [{"role": "user", "content": ""}]
    rows: dict[str, list[dict[str, Any]]] = {
        "environment_factory": [{"prompt": conversation, "game": game} for game in games],
        "rollout_func": [{"prompt": game} for game in games],
    }
    trainers = {
        "environment_factory": _trainer(
            world.folder, size.episodes, size, rows["environment_factory"], environment_factory=lambda: Tool(world)
        ),
        "rollout_func": _trainer(
            world.folder, size.episodes, size, rows["rollout_func"], rollout_func=loop, reward_funcs=_earned
        ),
    }
    sampled, tokens = {}, {}  # of the last rollout

    def theirs(name: str, turns: int) -> None:
        trainer = trainers[name]
        trainer.max_tool_calling_iterations, loop.turns = turns - 1, turns
        batch = trainer._generate_and_score_completions(rows[name])
        sampled[name] = int((batch["completion_mask"] * batch["tool_mask"]).sum())
        tokens[name] = int(batch["prompt_mask"].sum() + batch["completion_mask"].sum())

    def ours(turns: int) -> None:
        episodes = world.play(policy, turns)
        grpo(TurnTable.from_episodes(episodes))
        samples = build_samples(episodes)
        sampled["polyturn"] = sum(sum(s.mask) for s in samples)
        tokens["polyturn"] = sum(len(s.ids) for s in samples)

    seconds = alternate({"polyturn": ours} | {name: partial(theirs, name) for name in trainers}, size)
    if len(set(sampled.values())) > 1:
        raise RuntimeError(f"the sides did not sample the same number of tokens: {sampled}")
    return {
        **_turns_per_s(seconds, size),
        "sampled_tokens": sampled["polyturn"],
        "tokens": tokens,
        "ratio": {name: ratio(seconds[name], seconds["polyturn"]) for name in trainers},
        "trl": version("trl"),
    }


def _earned(earned: Sequence[float], **_: Any) -> list[float]:
    return list(earned)


def _trainer(folder: Path, micro_batch: int, size: Size, rows: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """A `GRPOTrainer` with its fastest settings on a CPU in float32."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import PrinterCallback

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about versions of vLLM, which is not used
        from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

    kind = options.pop("kind", GRPOTrainer)
    config = GRPOConfig(
        output_dir=str(folder.parent / "trl"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=size.episodes // micro_batch,
        num_generations=size.group,
        max_completion_length=CONTEXT,
        generation_kwargs={"max_new_tokens": size.new_tokens, "eos_token_id": None},
        max_steps=UPDATES,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = kind(model=str(folder), args=config, train_dataset=Dataset.from_list(list(rows)), **options)
    trainer.remove_callback(PrinterCallback)
    trainer.eos_token_ids = []  # only the token limit ends a completion, as in polyturn
    trainer.model.train()
    return trainer


# -- one update -------------------------------------------------------------------------------------------------------
def measure_update(world: World, note: Callable[[str], None]) -> dict[str, Any]:
    """Seconds and memory of both sides. Raises `RuntimeError` if their gradients differ."""
    sides: dict[str, Callable[..., dict[str, Any]]] = {"polyturn": _update_ours, "trl": _update_trl}
    if not find_spec("trl"):
        note("the update of trl was left out: it is not installed")
        del sides["trl"]
    samples = build_samples(world.play(world.policy()))
    advantages = np.random.default_rng(0).normal(size=len(samples))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(max(1, world.size.repeats - 1)):
        for name, side in sides.items():
            found[name].append(
                in_new_process(side, world.folder, world.size, samples, advantages, torch.get_num_threads())
            )
    figures: dict[str, Any] = {
        "tokens": sum(len(s.ids) for s in samples),
        "sampled_tokens": sum(sum(s.mask) for s in samples),
        "seconds": {name: spread([s for run in runs for s in run["seconds"]]) for name, runs in found.items()},
        "peak_mb": {name: spread([run["peak_mb"] for run in runs]) for name, runs in found.items()},
        "grad_norm": {name: runs[0]["grad_norm"] for name, runs in found.items()},
    }
    if "trl" in sides:
        norms = figures["grad_norm"]
        if abs(norms["trl"] / norms["polyturn"] - 1) > 1e-3:
            raise RuntimeError(f"the two updates are not the same: the gradients' norms are {norms}")
        pairs = {name: [statistics.median(run["seconds"]) for run in runs] for name, runs in found.items()}
        peaks = {name: [run["peak_mb"] for run in runs] for name, runs in found.items()}
        figures |= {
            "ratio": ratio(pairs["trl"], pairs["polyturn"]),
            "memory_ratio": ratio(peaks["polyturn"], peaks["trl"]),
        }
    return figures


def _update_ours(
    folder: Path, size: Size, samples: list[Sample], advantages: NDArray[np.float64], threads: int
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    width = -(-max(len(s.ids) for s in samples) // LENGTH_STEP) * LENGTH_STEP
    memory = Memory()
    learner = Learner(model, learner_config(size.micro_batch * width))
    rng, seconds, norms = np.random.default_rng(0), [], []
    table = table_of(samples)
    for _ in range(UPDATES):
        start = time.perf_counter()
        by_turn = np.repeat(advantages, size.turns)
        norms.append(learner.update(samples, table, by_turn, rng, LEARNING_RATE)["train/grad_norm"])
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[1:], "peak_mb": memory.peak_mb(), "grad_norm": norms[0]}


def _update_trl(
    folder: Path, size: Size, samples: list[Sample], advantages: NDArray[np.float64], threads: int
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    from transformers import TrainerCallback
    from trl import GRPOTrainer  # type: ignore[attr-defined]

    class PreparedTrainer(GRPOTrainer):
        """Trains on the given batch."""

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            del inputs
            return dict(batch)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.start)

    seconds: list[float] = []
    batch = _trl_batch(samples, advantages)
    rows = [{"prompt": "none"}] * size.episodes
    trainer = _trainer(
        folder, size.micro_batch, size, rows, kind=PreparedTrainer, reward_funcs=_earned, callbacks=[Clock()]
    )
    memory = Memory()
    trainer.train()
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    return {"seconds": seconds[1:], "peak_mb": memory.peak_mb(), "grad_norm": norms[0]}


def _trl_batch(samples: Sequence[Sample], advantages: NDArray[np.float64]) -> dict[str, Any]:
    """The samples in TRL's format: prompts [B, P] padded on the left, the rest [B, C] padded on the right."""
    firsts = [sample.mask.index(True) for sample in samples]
    most_prompt, most_rest = max(firsts), max(len(s.ids) - n for s, n in zip(samples, firsts, strict=True))
    prompt_ids = torch.zeros(len(samples), most_prompt, dtype=torch.long)
    completion_ids = torch.zeros(len(samples), most_rest, dtype=torch.long)
    prompt_mask, completion_mask = torch.zeros_like(prompt_ids), torch.zeros_like(completion_ids)
    tool_mask, old = torch.ones_like(completion_ids), torch.zeros(len(samples), most_rest)
    for row, (sample, first) in enumerate(zip(samples, firsts, strict=True)):
        length = len(sample.ids) - first
        prompt_ids[row, most_prompt - first :] = torch.tensor(sample.ids[:first])
        prompt_mask[row, most_prompt - first :] = 1
        completion_ids[row, :length] = torch.tensor(sample.ids[first:])
        completion_mask[row, :length] = 1
        tool_mask[row, :length] = torch.tensor(sample.mask[first:]).long()
        old[row, :length] = torch.tensor(sample.logprobs[first:])
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": torch.from_numpy(advantages).float(),
        "old_per_token_logps": old,
        "num_items_in_batch": (completion_mask * tool_mask).sum(),
    }


def table_of(samples: Sequence[Sample]) -> TurnTable:
    """A table of the samples' turns, one episode per sample, with their numbers of tokens."""
    counts = [np.unique([t for t in sample.turn if t >= 0], return_counts=True)[1] for sample in samples]
    turns, tokens = np.array([len(these) for these in counts]), np.concatenate(counts)
    n = len(tokens)
    return TurnTable(
        group=np.zeros(n, dtype=np.int64),
        episode=np.repeat(np.arange(len(samples)), turns),
        turn=np.concatenate([np.arange(count) for count in turns]),
        reward=np.zeros(n),
        state=np.array([str(i) for i in range(n)], dtype=object),
        valid=np.ones(n, dtype=np.bool_),
        tokens=tokens,
    )


def learner_config(micro_batch_tokens: int, **changes: Any) -> LearnerConfig:
    """One optimiser step per update, PPO's clipping, no KL."""
    settings: dict[str, Any] = {
        "objective": Objective(partial(clip_loss, dual_clip=None)),
        "learning_rate": LEARNING_RATE,
        "final_learning_rate": LEARNING_RATE,
        "warmup_updates": 0,
        "weight_decay": 0.0,
        "grad_clip": 1.0,
        "minibatches": 1,
        "micro_batch_tokens": micro_batch_tokens,
        "gradient_checkpointing": False,
        "precision": "float32",
        "temperature": 1.0,
    }
    return LearnerConfig(**{**settings, **changes})


class Memory:
    """The peak of this process's memory from now on, minus its memory now. `resource` would count the parent's."""

    STATUS = Path("/proc/self/status")

    def __init__(self) -> None:
        self.start = float("nan")
        if self.STATUS.exists():
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
            self.start = self._read("VmRSS")

    def peak_mb(self) -> float:
        return self._read("VmHWM") - self.start if self.STATUS.exists() else float("nan")

    def _read(self, what: str) -> float:
        line = next(line for line in self.STATUS.read_text(encoding="ascii").splitlines() if line.startswith(what))
        return int(line.split()[1]) / 1024


# -- times, ratios and the report -------------------------------------------------------------------------------------
def alternate(sides: Mapping[str, Callable[[int], object]], size: Size) -> dict[str, list[float]]:
    """Seconds of each side, measured alternately after a warm-up of two turns each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for play in sides.values():
        play(2)
    for _ in range(size.repeats):
        for name, play in sides.items():
            start = time.perf_counter()
            play(size.turns)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def in_new_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call the function in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range, to four digits."""
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """The ratios of neighbouring measurements."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def _turns_per_s(seconds: Mapping[str, Sequence[float]], size: Size) -> dict[str, Any]:
    turns = size.episodes * size.turns
    return {"turns_per_s": {name: spread([turns / s for s in found]) for name, found in seconds.items()}}


def _table(figures: Mapping[str, Any]) -> Table:
    table = Table("", "polyturn", "peer", "ratio", "target", title="Rollouts and updates")
    for column in table.columns[1:]:
        column.justify = "right"
    for engine, found in figures.get("orchestration", {}).items():
        tokens = f"{found['engine_tokens_per_s']['median']:,.0f} tokens/s"
        share = {name: 100 * value for name, value in found["share"].items()}
        table.add_row(
            f"outside of the engine ({engine})", "", tokens, _median_and_range(share, " %"), TARGETS["orchestration"]
        )
    if found := figures.get("kv"):
        speeds = found["turns_per_s"]
        cells = [f"{speeds[side]['median']:.1f} turns/s" for side in ("kept", "read_again")]
        table.add_row("keys and values kept, read again", *cells, _median_and_range(found["ratio"]), TARGETS["kv"])
    if found := figures.get("trl"):
        speeds = found["turns_per_s"]
        for name, one in found["ratio"].items():
            cells = [f"{speeds[side]['median']:.1f} turns/s" for side in ("polyturn", name)]
            table.add_row(f"trl, {name}", *cells, _median_and_range(one), TARGETS["trl"])
    if found := figures.get("update"):
        for row, unit, key, bar in (
            ("update", "s", "ratio", "update"),
            ("its memory", "MB", "memory_ratio", "update memory"),
        ):
            sides = found["seconds" if unit == "s" else "peak_mb"]
            cells = [f"{sides[s]['median']:,.4g} {unit}" if s in sides else "" for s in ("polyturn", "trl")]
            table.add_row(f"{row}, trl", *cells, _median_and_range(found[key]) if key in found else "", TARGETS[bar])
    return table


def _median_and_range(found: Mapping[str, float], unit: str = "×") -> str:
    return f"{found['median']:.2f} ({found['low']:.2f}–{found['high']:.2f}){unit}"


def machine() -> dict[str, Any]:
    """The machine of the measurements."""
    return {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "date": time.strftime("%Y-%m-%d"),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the chosen parts, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.rollouts", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="a comma-separated list")
    parser.add_argument("--episodes", type=int, default=16, help="episodes at a time")
    parser.add_argument("--group", type=int, default=4, help="attempts at each game")
    parser.add_argument("--turns", type=int, default=20, help="turns of every episode")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens of every completion")
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences in one pass of the update")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of every comparison")
    parser.add_argument("--output", type=Path, help="file for the line of JSON")
    options = vars(parser.parse_args(argv))
    parts, output = options.pop("parts").split(","), options.pop("output")
    if unknown := set(parts) - set(PARTS):
        raise UnknownNameError("part", sorted(unknown)[0], PARTS)
    size = Size(**options)
    if size.episodes % size.group or size.episodes % size.micro_batch or size.turns < 2:
        parser.error("--episodes must be a multiple of --group and of --micro-batch, and --turns at least 2")

    disable_progress_bar()
    console = Console()
    notes: list[str] = []
    measures = {
        "orchestration": measure_orchestration,
        "kv": measure_kv,
        "trl": measure_trl,
        "update": measure_update,
    }
    figures: dict[str, Any] = {"machine": machine(), "size": options}
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(size, Path(folder))
        for part in [part for part in PARTS if part in parts]:
            start = time.perf_counter()
            if found := measures[part](world, notes.append):
                figures[part] = found
            console.print(f"{part}: {time.perf_counter() - start:.0f} s", style="dim")
    console.print(_table(figures))
    for line in notes:
        console.print(line)
    write_line({**figures, "notes": notes}, output)


def write_line(figures: Mapping[str, Any], output: Path | None) -> None:
    """Print figures as one line of JSON, and write it to the file `output`."""
    text = json.dumps(figures)
    if output:
        write_whole(output, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
