"""The type, range or choices of each setting of a configuration.

The whole configuration is checked before torch is imported (`check_settings`), so an error is reported within a second.
A name in `SETTINGS` is the end of a setting's key (`eval.limit`), or the function or class of a `_target_` and one of
its parameters (`gigpo.mode`). The form with a `_target_` has precedence; of the others, the longest that matches.
Arguments of a `_target_` outside of polyturn, and keys that are not listed, are not checked.

OmegaConf's structured configurations and pydantic were not used: both want a class for every group and every
`_target_`, which repeats the signatures; the first has neither ranges nor choices, and neither suggests a value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from envs.core import UnknownNameError
from scripts.run_folder import override_key, written

OUR_PACKAGES = ("envs", "agents", "algorithms", "scripts")
GROUPS = {  # configuration of a command -> the groups that it needs
    "config": ("env", "agent", "policy", "rollout", "parallel", "trainer", "algo", "eval", "pool"),
    "doctor": ("env", "agent", "policy", "rollout", "parallel", "trainer", "algo", "eval", "pool"),
    "plan": ("env", "agent", "policy", "rollout", "parallel", "trainer", "algo", "eval", "pool", "plan"),
    "lab": ("env", "agent", "policy", "rollout", "parallel", "trainer", "algo", "eval", "pool"),
    "evaluate": ("env", "agent", "policy", "rollout", "pool"),
    "sweep": ("pool",),
    "play": ("env", "policy", "rollout"),
    "serve": ("env",),
    "check": ("env",),
}
KEYS = {  # configuration of a command -> the other keys of the top level that it reads
    "config": ("seed", "split", "model", "logger", "resume"),
    "doctor": ("seed", "split", "model", "logger", "resume"),
    "plan": ("seed", "split", "model", "logger", "resume", "gpus", "gpu", "shape", "measured", "benchmark"),
    "lab": ("seed", "split", "model", "logger", "resume", "algos", "seeds", "lab"),
    "evaluate": ("seeds", "split", "model", "max_turns", "limit", "resume"),
    "sweep": ("agents", "envs", "splits", "models", "seeds", "limit", "max_turns", "sweep"),
    "play": ("agent", "split", "task", "seed", "model", "delay"),
    "serve": (),
    "check": (),
}
CLOSED = ("trainer", "eval", "pool", "lab", "plan", "sweep")  # groups with exactly the keys that are listed here
OPTIONAL = ("trainer.env_steps",)  # keys of these groups that may be absent


# -- kinds of settings ------------------------------------------------------------------------------------------------
class Kind(Protocol):
    """The values that a setting accepts. `str(kind)` completes the sentence "KEY must be …"."""

    def accepts(self, value: Any) -> bool:
        """Whether `value` is accepted."""

    def suggestion(self, value: Any) -> str:
        """The accepted value that the user probably meant, in the syntax of the command line; or an empty text."""


@dataclass(frozen=True)
class Integer:
    """A whole number."""

    low: int
    high: int = 1_000_000_000

    def accepts(self, value: Any) -> bool:
        return type(value) is int and self.low <= value <= self.high

    def suggestion(self, value: Any) -> str:
        is_number = type(value) in (int, float) and not math.isnan(value)
        return str(round(min(max(value, self.low), self.high))) if is_number else ""

    def __str__(self) -> str:
        return f"a whole number from {self.low:,} to {self.high:,}"


@dataclass(frozen=True)
class Number:
    """A finite number."""

    low: float
    high: float
    above: bool = False  # `low` itself is excluded

    def accepts(self, value: Any) -> bool:
        return type(value) in (int, float) and self.low <= value <= self.high and not (self.above and value == self.low)

    def suggestion(self, value: Any) -> str:
        is_number = type(value) in (int, float) and not math.isnan(value)
        nearest = min(max(value, self.low), self.high) if is_number else self.low
        return f"{nearest:g}" if is_number and self.accepts(nearest) else ""

    def __str__(self) -> str:
        return f"a number {'above' if self.above else 'from'} {self.low:g}{', up' * self.above} to {self.high:,.10g}"


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)

    def suggestion(self, value: Any) -> str:
        return {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}.get(
            str(value).lower(), ""
        )

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Text:
    """A text, such as a name."""

    may_be_empty: bool = False

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and (self.may_be_empty or value != "")

    def suggestion(self, value: Any) -> str:
        return f"\"'{value}'\"" if type(value) in (int, float, bool) else ""

    def __str__(self) -> str:
        return "a text"


@dataclass(frozen=True)
class Word:
    """One of some words."""

    words: tuple[str, ...]

    def accepts(self, value: Any) -> bool:
        return value in self.words

    def suggestion(self, value: Any) -> str:  # noqa: ARG002 - see `UnknownNameError`
        return ""

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"


@dataclass(frozen=True)
class Section:
    """A group of settings."""

    is_part: bool = False  # it has a `_target_`
    of_parts: bool = False  # each of its members has a `_target_`
    is_free: bool = False  # its members are not checked

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, DictConfig):
            return False
        parts = [value] * self.is_part + list(value.values()) * self.of_parts
        return all(isinstance(part, DictConfig) and isinstance(part.get("_target_"), str) for part in parts)

    def suggestion(self, value: Any) -> str:  # noqa: ARG002
        return ""

    def __str__(self) -> str:
        return "a group of settings" + " with _target_" * self.is_part + ", each with _target_" * self.of_parts


@dataclass(frozen=True)
class ListOf:
    """A list, without duplicates if `distinct`."""

    item: Kind
    fewest: int = 0
    most: int = 1_000_000
    distinct: bool = True

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, ListConfig) or not self.fewest <= len(value) <= self.most:
            return False
        return all(map(self.item.accepts, value)) and not (self.distinct and len(set(value)) < len(value))

    def suggestion(self, value: Any) -> str:
        """Split the text at blanks into items, and put quotes around items of the wrong type."""
        items = value.split() if isinstance(value, str) else value if isinstance(value, ListConfig) else [value]
        if not self.fewest <= len(items) <= self.most:
            return ""
        written = [_item(item) if self.item.accepts(item) else self.item.suggestion(item) for item in items]
        written = list(dict.fromkeys(written)) if self.distinct else written
        return f"[{','.join(written)}]" if all(written) else ""

    def __str__(self) -> str:
        items = "different items" if self.distinct else "items"
        count = f"{self.most} " if self.most == self.fewest else "one or more " if self.fewest else ""
        return f"a list of {count}{items}, each {self.item}"


def _item(value: Any) -> str:
    """An accepted item of a list, in the syntax of the command line."""
    plain = not isinstance(value, str) or re.fullmatch(r"[\w./:@%+-]+", value)
    return str(value) if plain else f"\"'{value}'\""


@dataclass(frozen=True)
class Either:
    """Any of several kinds; None is null."""

    kinds: tuple[Kind | None, ...]

    def accepts(self, value: Any) -> bool:
        return any(value is None if kind is None else kind.accepts(value) for kind in self.kinds)

    def suggestion(self, value: Any) -> str:
        return next((suggested for kind in self.kinds if kind and (suggested := kind.suggestion(value))), "")

    def __str__(self) -> str:
        return " or ".join("null" if kind is None else str(kind) for kind in self.kinds)


def _or_null(kind: Kind) -> Either:
    return Either((kind, None))


def _words(*words: str) -> Word:
    return Word(words)


# -- the settings -----------------------------------------------------------------------------------------------------
MANY = 1_000_000
SEED = Integer(0, 2**32 - 1)  # accepted by every random generator
COUNT, NON_NEGATIVE = Integer(1, MANY), Integer(0, MANY)
TOKENS = Integer(1, 1_000_000_000)
SECONDS, DURATION = Number(0, 1e6, above=True), Number(0, 1e6)
SHARE, WEIGHT, POSITIVE = Number(0, 1), Number(0, 1e6), Number(0, 1e6, above=True)
RATE = Number(0, 10)  # of learning
TEMPERATURE = Number(0, 100)
FLAG, TEXT, SECTION, PART = Flag(), Text(), Section(), Section(is_part=True)
FREE = _or_null(Section(is_free=True))
DTYPE = _words("float32", "bfloat16", "float16")
SEQUENCE_MEANS = ("seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")

SETTINGS: dict[str, Kind] = {
    # of a command
    "seed": SEED,
    "seeds": ListOf(SEED, fewest=1),
    "split": _or_null(TEXT),
    "model": _or_null(TEXT),
    "resume": _or_null(TEXT),
    "max_turns": _or_null(COUNT),
    "limit": _or_null(COUNT),
    "delay": DURATION,
    "eval": SECTION,
    "eval.splits": _or_null(ListOf(TEXT)),
    "eval.limit": _or_null(COUNT),
    "eval.temperature": TEMPERATURE,
    "eval.selection_tasks": NON_NEGATIVE,
    "pool": SECTION,
    "pool.size": Integer(1, 100_000),
    "pool.workers": Integer(0, 1_000),
    "pool.step_timeout": SECONDS,
    # sweep
    "agents": _or_null(ListOf(Either((TEXT, ListOf(TEXT, fewest=1))), fewest=1)),
    "envs": _or_null(ListOf(Either((TEXT, ListOf(TEXT, fewest=1))), fewest=1)),
    "splits": _or_null(ListOf(TEXT, fewest=1)),
    "models": _or_null(ListOf(TEXT, fewest=1)),
    "sweep": SECTION,
    "sweep.dir": TEXT,
    # lab
    "algos": ListOf(TEXT, fewest=1),
    "lab": SECTION,
    "lab.baseline": TEXT,
    "parallel": SECTION,
    "parallel.chunks": Integer(1, 100_000),
    "parallel.timeout": SECONDS,
    "parallel.size": _or_null(Integer(1, 100_000)),
    "parallel.offload": FLAG,
    "lab.rates": _or_null(ListOf(RATE, fewest=1)),
    "lab.seconds": _or_null(POSITIVE),
    "lab.join": ListOf(TEXT),
    "lab.processes": Integer(0, 1_000),
    # plan
    "gpus": Integer(1, 100_000),
    "gpu": TEXT,
    "shape": _or_null(SECTION),
    **{f"shape.{name}": COUNT for name in ("width", "feed_forward", "layers", "heads", "kv_heads", "vocabulary")},
    "shape.head_dim": _or_null(COUNT),
    "shape.tied": FLAG,
    "measured": _or_null(TEXT),
    "benchmark": _or_null(TEXT),
    "plan": SECTION,
    "plan.tensor_parallel": _or_null(COUNT),
    "plan.turns": _or_null(POSITIVE),
    "plan.sampled": POSITIVE,
    "plan.observed": WEIGHT,
    "plan.sequence_turns": _or_null(Number(1, 1e6)),
    "plan.env_seconds": DURATION,
    **{f"plan.{name}": Number(0, 1, above=True) for name in ("mfu", "decode", "prefill", "usable")},
    "plan.network": POSITIVE,
    "plan.sync_seconds": DURATION,
    "plan.most_lag": COUNT,
    "plan.node": COUNT,
    "plan.measured_gpus": NON_NEGATIVE,
    # trainer
    "trainer": SECTION,
    "trainer.updates": _or_null(NON_NEGATIVE),
    "trainer.env_steps": _or_null(Integer(1, 1_000_000_000)),
    "trainer.groups": COUNT,
    "trainer.group_size": COUNT,
    "trainer.max_turns": COUNT,
    "trainer.epochs": COUNT,
    "trainer.minibatches": COUNT,
    "trainer.micro_batch_tokens": TOKENS,
    "trainer.gradient_checkpointing": FLAG,
    "trainer.learning_rate": RATE,
    "trainer.final_learning_rate": RATE,
    "trainer.warmup_updates": NON_NEGATIVE,
    "trainer.weight_decay": WEIGHT,
    "trainer.grad_clip": POSITIVE,
    "trainer.precision": _words("float32", "bfloat16"),
    "trainer.correction": _or_null(PART),
    "correction.level": _words("token", "turn", "episode", "episode_mean"),
    "correction.low": SHARE,
    "correction.high": POSITIVE,
    "correction.outside": _words("clip", "zero"),
    "correction.normalize": FLAG,
    "correction.reject": FREE,
    "correction.lowest_ratio": SHARE,
    "trainer.eval_every": NON_NEGATIVE,
    "trainer.checkpoint_every": COUNT,
    "trainer.checkpoint_async": FLAG,
    "trainer.record_every": NON_NEGATIVE,
    "trainer.record_keep": _or_null(COUNT),
    "trainer.episode_timeout": SECONDS,
    # env
    "env": PART,
    "env.max_turns": COUNT,
    "GymTasks.max_turns": _or_null(COUNT),
    "GymTasks.id": TEXT,
    "GymTasks.kwargs": FREE,
    "train_tasks": COUNT,
    "valid_tasks": COUNT,
    "env.data": _or_null(TEXT),
    "embedded_train": COUNT,
    "embedded_valid": COUNT,
    "embedded_valid_seen": COUNT,
    "embedded_valid_unseen": COUNT,
    "embedded_products": COUNT,
    "games": _words("auto", "official", "embedded"),
    "engine": _words("native", "textworld"),
    "catalogue": _words("auto", "small", "full", "embedded"),
    "instructions": _words("auto", "synthetic", "human"),
    "protocol": _words("official", "verl_agent"),
    "observation": _words("text", "text_rich"),
    "recipes": _words("auto", "official", "embedded"),
    "TextCraftTasks.protocol": _words("plain", "agentgym"),
    "TextCraftTasks.max_turns": _or_null(COUNT),
    "variations": _words("official", "eto", "epo_l0", "epo_l1", "epo_l2"),
    "ScienceWorldTasks.tasks": _or_null(ListOf(TEXT, fewest=1)),
    "simplification": _or_null(Text(may_be_empty=True)),
    "env.admissible": FLAG,
    "memory_mb": Integer(64, 1_000_000),
    "TextWorldExpressTasks.games": _or_null(ListOf(TEXT, fewest=1)),
    "levels": _or_null(ListOf(TEXT, fewest=1)),
    "TextArenaTasks.game": TEXT,
    "GemTasks.game": TEXT,
    "ReasoningGymTasks.dataset": TEXT,
    "ReasoningGymTasks.config": FREE,
    "recipe": Integer(1, 5),
    "take": Integer(1, 5),
    "go": Integer(1, 12),
    "open": FLAG,
    "cook": FLAG,
    "cut": FLAG,
    "drop": FLAG,
    "params": Text(may_be_empty=True),
    "domain": _words("auto", "retail", "airline", "embedded"),
    "TauBenchTasks.format": _or_null(_words("brackets", "tags", "json", "native")),
    "TauBenchTasks.oracle": FLAG,
    "env.user": PART,
    "user.temperature": TEMPERATURE,
    "user.max_tokens": TOKENS,
    "env.partner": PART,
    "partner.temperature": TEMPERATURE,
    "partner.max_tokens": TOKENS,
    "env.judge": PART,
    "scenarios": _words("auto", "official", "embedded"),
    "SearchTasks.protocol": _words("polyturn", "search_r1", "verl_agent", "igpo", "mt_grpo"),
    "SearchTasks.max_turns": _or_null(COUNT),
    "questions": TEXT,
    "ToolTasks.questions": _words("embedded", "bfcl"),
    "ToolTasks.format": _or_null(_words("brackets", "tags", "json", "native")),
    "ToolTasks.max_turns": _or_null(COUNT),
    "call_seconds": SECONDS,
    "ToolTasks.output": _or_null(COUNT),
    "corpus": _or_null(TEXT),
    "retriever": _words("bm25", "dense", "hybrid", "remote"),
    "top_k": _or_null(COUNT),
    "embedded_people": Integer(24, 576),
    "env.model": _or_null(TEXT),
    "url": _or_null(TEXT),
    "wire": _words("search_r1", "verl_agent"),
    "mcp_tasks.command": _or_null(ListOf(TEXT, distinct=False)),
    "mcp_tasks.max_turns": _or_null(COUNT),
    "mcp_tasks.questions": _or_null(TEXT),
    "mcp_tasks.only": _or_null(ListOf(TEXT, fewest=1)),
    "mcp_tasks.format": _words("brackets", "tags", "json", "native"),
    "openenv_tasks.action": _or_null(TEXT),
    "openenv_tasks.observation": _or_null(TEXT),
    "openenv_tasks.max_turns": _or_null(COUNT),
    "start_timeout": SECONDS,
    "call_timeout": SECONDS,
    "train_workers": COUNT,
    "train_resets": COUNT,
    "valid_workers": COUNT,
    "rooms": Integer(1, 10_000),
    "loops": Integer(0, 10_000),
    "FrozenLakeTasks.size": Integer(2, 100),
    "frozen": Number(0, 1, above=True),
    "slippery": FLAG,
    "success_rate": SHARE,
    "FrozenLakeTasks.observation": _words("grid", "coord", "grid_coord"),
    "CountdownTasks.numbers": Integer(2, 12),
    "largest": COUNT,
    "SokobanTasks.levels": _words("generated", "boxoban"),
    "SokobanTasks.observation": _words("grid", "coord", "grid_coord", "verl_agent"),
    "dead_ends": _words("ignore", "turn_reward", "end"),
    "SokobanTasks.max_turns": _or_null(COUNT),
    "rows": Integer(4, 99),
    "columns": Integer(4, 99),
    "boxes": Integer(1, 99),
    "depth": Integer(2, 10_000),
    # agent
    "agent": PART,
    "player": PART,
    "prompter": PART,
    "constant.text": Text(may_be_empty=True),
    "prompter.system": TEXT,
    "prompter.name": TEXT,
    "prompter.history": Either((NON_NEGATIVE, PART)),  # a number of turns for templates; a kind of history for chats
    "prompter.parser": PART,
    "prompter.keep_reasoning": FLAG,
    "prompter.admissible": FLAG,
    "prompter.max_turns": COUNT,
    "prompter.max_actions": COUNT,
    "actions_per_turn": COUNT,
    "words": COUNT,
    "prompter.messages": FLAG,
    "prompter.opening": Text(may_be_empty=True),
    "prompter.template_options": FREE,
    "history.kind": _words("full", "last_k", "summary"),
    "history.turns": _or_null(NON_NEGATIVE),
    "history.max_tokens": _or_null(TOKENS),
    "sampling": PART,
    "sampling.temperature": TEMPERATURE,
    "sampling.max_tokens": Integer(1, 10_000_000),
    "sampling.stop": ListOf(TEXT),
    "sampling.top_p": Number(0, 1, above=True),
    "sampling.top_k": Integer(0, 10_000_000),
    "sampling.min_p": Number(0, 1),
    "player.normalization": _words("word", "token", "sum"),
    # endpoints: agent=openai, rollout=vllm_server, judges
    "name": TEXT,
    "base_url": _or_null(TEXT),
    "api_key": _or_null(TEXT),
    "concurrency": Integer(1, 100_000),
    "timeout": SECONDS,
    "max_retries": Integer(0, 1_000),
    "parameters": FREE,
    "system_role": _or_null(TEXT),
    "prices": _or_null(ListOf(Number(0, 1e9), 2, 2, distinct=False)),
    # policy
    "policy": PART,
    "policy.seed": _or_null(SEED),
    "policy.dtype": Word(("auto", *DTYPE.words)),
    "attention": TEXT,
    "quantization": _or_null(_words("4bit")),
    "policy.width": Integer(1, 65_536),
    "policy.layers": Integer(1, 1_000),
    "policy.heads": Integer(1, 1_000),
    "policy.context": _or_null(Integer(2, 10_000_000)),  # a pretrained model has its own
    "warm_start": _or_null(PART),
    "warm_start.episodes": COUNT,
    "warm_start.noise": Number(0, 0.999),
    "warm_start.steps": COUNT,
    "warm_start.tokens_per_step": TOKENS,
    "warm_start.matrix_lr": _or_null(RATE),
    "warm_start.other_lr": RATE,
    "warm_start.observation_weight": WEIGHT,
    "warm_start.text_weight": WEIGHT,
    "warm_start.observation_share": SHARE,
    "lora": _or_null(PART),
    "lora.rank": Integer(1, 65_536),
    "lora.alpha": POSITIVE,
    "lora.targets": Either((TEXT, ListOf(TEXT, fewest=1))),
    # rollout
    "rollout": PART,
    "rollout.dtype": _or_null(DTYPE),
    "rollout.max_context": _or_null(Integer(2, 10_000_000)),
    "rollout.gpu_memory": Number(0, 1, above=True),
    "rollout.enforce_eager": FLAG,
    "rollout.tolerance": _or_null(POSITIVE),
    "rollout.folder": _or_null(TEXT),
    # algo: the objective
    "algo": SECTION,
    "algo.estimator": PART,
    "algo.loss": PART,
    "algo.signals": Section(of_parts=True),
    "algo.filters": Section(of_parts=True),
    "logger": ListOf(TEXT),
    "reward_variance.strategy": _words("top_p", "top_k", "top_k_abs", "min_p"),
    "reward_variance.value": POSITIVE,
    "reward_variance.mode": _words("linear", "softmax"),
    **{f"reward_variance.{name}": FLAG for name in ("largest", "include_zero")},
    "reward_variance.slack": WEIGHT,
    "repetitive.ngram": COUNT,
    "repetitive.share": SHARE,
    "algo.aggregation": _words("token-mean", *SEQUENCE_MEANS, "turn-mean", "trajectory-mean"),
    "algo.loss_divisor": _or_null(POSITIVE),
    "algo.kl_coef": WEIGHT,
    "algo.kl_estimator": _words("k1", "abs", "k2", "k3", "k1+", "abs+", "k3+", "k3_ratio"),
    "algo.kl_in": _words("loss", "reward"),
    "algo.reference": _or_null(TEXT),
    "algo.entropy_coef": WEIGHT,
    "probability_mask": _or_null(Number(0, 1, above=True)),
    "algo.dynamic_sampling": FLAG,
    "algo.demonstrations": NON_NEGATIVE,
    "algo.drop_zero_episodes": FLAG,
    "algo.replay": _or_null(PART),
    "replay.loss": _or_null(PART),
    **{f"Replay.{name}": COUNT for name in ("age", "size", "baselines")},
    **{f"Replay.{name}": NON_NEGATIVE for name in ("threshold", "warmup_updates")},
    "Replay.decay": _or_null(SHARE),
    "algo.tree_expansion": _or_null(PART),
    "trees": COUNT,
    "expand": COUNT,
    "where_unsure.weight": WEIGHT,
    "where_unsure.threshold": SHARE,
    "where_unsure.first_ids": COUNT,
    "eps_low": SHARE,
    "eps_high": WEIGHT,
    "dual_clip": _or_null(Number(1, 1e6, above=True)),
    "topr_loss.ratio": _words("sequence", "token"),
    "loss.unit": _words("turn", "episode"),
    "dppo_loss.divergence": _words("tv", "kl"),
    "dppo_loss.delta": POSITIVE,
    "cispo_loss.eps_low": _or_null(SHARE),
    **{f"sapo_loss.tau_{side}": POSITIVE for side in ("positive", "negative")},
    **{f"vespo_loss.{what}_{side}": WEIGHT for what in ("power", "rate") for side in ("positive", "negative")},
    "loss.share": Number(0, 1, above=True),
    "loss.coef": WEIGHT,
    **{f"clip_cov_loss.{bound}": Number(-1e9, 1e9) for bound in ("lowest", "highest")},
    "loss.of": PART,
    "s_grpo_loss.first": NON_NEGATIVE,
    "s_grpo_loss.most": COUNT,
    "opsm_loss.delta": WEIGHT,
    "fipo_loss.half_life": POSITIVE,
    "fipo_loss.clip": SHARE,
    "fipo_loss.high_only": FLAG,
    **{f"fipo_loss.{bound}": _or_null(POSITIVE) for bound in ("safety", "delta")},
    "aepo_loss.dual_clip": Number(1, 1e6, above=True),
    "aepo_loss.keep_gradient": _words("low", "high"),
    "luffy_loss.shape": _or_null(POSITIVE),
    "chord_loss.mu": SHARE,
    "chord_loss.token_weight": FLAG,
    "nft_loss.normalizer": _words("none", "failure_rate", "std"),
    "nft_loss.negative_weight": WEIGHT,
    "nft_loss.lowest_rate": Number(0, 0.5),
    # algo: estimators
    "gamma": SHARE,
    "lam": SHARE,
    "turn_gamma": SHARE,
    "epsilon": POSITIVE,
    "statistics": _words("turns", "episodes"),
    "turn_ends": _words("explicit", "nonzero"),
    "normalize": FLAG,
    "normalize_by_std": FLAG,
    "whiten": FLAG,
    "otb.zero_tail": FLAG,
    "step_grpo.pool": _words("task", "batch"),
    "macro_gae.length": COUNT,
    "macro_gae.weights": _words("equal", "last", "position"),
    "compare": _words("all", "apart"),
    "entropy_weight": WEIGHT,
    "lowest_entropy": POSITIVE,
    "threshold": Number(-1e6, 1e6),
    "hicra.alpha": WEIGHT,
    "tp_grpo.thought_weight": WEIGHT,
    "tp_grpo.adapt": SHARE,
    "rlvmr.form_penalty": WEIGHT,
    "redi.negative_weight": WEIGHT,
    **{f"spa_rl.{name}_weight": WEIGHT for name in ("progress", "grounding")},
    "whiten_turns": FLAG,
    "invalid_penalty": WEIGHT,
    "step_weight": WEIGHT,
    "episode_weight": WEIGHT,
    "outcome_weight": WEIGHT,
    "process_weight": WEIGHT,
    "prm_weight": WEIGHT,
    "gain_weight": WEIGHT,
    "turn_weight": WEIGHT,
    "positive_weight": WEIGHT,
    "shared_turns": _words("each", "once"),
    "observations": _words("skip", "reset"),
    "gigpo.mode": _words("mean_std_norm", "mean_norm"),
    "gigpo.similarity": _or_null(SHARE),
    "hgpo.mode": _words("mean_std_norm", "mean_norm"),
    "hgpo.history": NON_NEGATIVE,
    "hgpo.alpha": WEIGHT,
    "hgpo.base_group": FLAG,
    "hgpo.precision": _words("float64", "float32"),
    "istar.mode": _words("rloo", "mean_norm", "mean_std_norm", "reinforce_pp_baseline"),
    "istar.baseline": _words("first_turns", "all_turns"),
    "istar.scale_steps": _words("batch", "none"),
    "istar.merged": FLAG,
    "igpo.gain": _words("log_prob_diff", "prob_diff"),
    "igpo.normalization": _words("separate", "joint"),
    "turn_gae.anchor": _words("turn", "last_token"),
    "psr_nsr.learn_from": _words("positive", "negative", "weighted"),
    "luffy.compare_with": _words("own", "all"),
    "rloo.single": _words("score", "zero"),
    "tree_grpo.combine": _words("compose", "add"),
    "pure.baseline": _words("token", "turn"),
    "pure.temperature": _or_null(Number(0, 1e6, above=True)),
    "ddof": Integer(0, 1),
    "dapo.limit": TOKENS,
    "dapo.buffer": TOKENS,
    "dapo.factor": WEIGHT,
    "empg.scale": WEIGHT,
    "empg.clarity_scale": WEIGHT,
    "empg.clarity_weight": WEIGHT,
    "ngrpo.max_reward": Number(-1e6, 1e6),
    "ngrpo.virtual": NON_NEGATIVE,
    # algo: signals
    "Critic.body": _words("separate", "policy"),
    "Critic.learning_rate": RATE,
    "Critic.epochs": COUNT,
    "Critic.minibatches": COUNT,
    "Critic.clip": _or_null(POSITIVE),
    "ImplicitPRM.loss": _words("pairwise", "outcome"),
    "ImplicitPRM.reference": _words("sampler", "first"),
    "ImplicitPRM.update": _words("before", "after"),
    "ImplicitPRM.beta": WEIGHT,
    "ImplicitPRM.learning_rate": RATE,
    "Residual.rank": COUNT,
    **{f"Residual.{name}": SHARE for name in ("lowest", "low", "high")},
    "Residual.most_tokens": COUNT,
    "Progress.body": _words("separate", "policy"),
    "Progress.learning_rate": RATE,
    "Progress.steps": COUNT,
    **{f"MetaReasoning.{name}": WEIGHT for name in ("planning", "explore", "reflection")},
    **{f"TaskValue.{name}": POSITIVE for name in ("half_life", "first_weight")},
    **{f"TaskValue.{name}": SHARE for name in ("lowest", "highest", "first_value")},
    "Judge.model": PART,
    "Judge.critiques": Integer(1, 1_000),
    "Judge.vote": _words("majority", "intersection", "average"),
    "Judge.right": Number(-1e6, 1e6),
    "Judge.wrong": Number(-1e6, 1e6),
    "Judge.template": TEXT,
    "LocalModel.batch_size": COUNT,
    "MonteCarlo.attempts": COUNT,
    "MonteCarlo.segment_turns": COUNT,
    "MonteCarlo.share_states": FLAG,
    "AnswerGain.action": TEXT,
    "AnswerGain.thought": _or_null(Text(may_be_empty=True)),
    "AnswerGain.model": _words("policy", "first"),
    "Phrases.phrases": ListOf(TEXT, fewest=1),
}


# -- the check --------------------------------------------------------------------------------------------------------
def check_settings(config: DictConfig, command: str) -> None:
    """Check the settings of a configuration. `command` names it, as in `conf/<command>.yaml`.

    Raises `ValueError` or `UnknownNameError` for the first wrong setting, with what was expected, and
    `MissingMandatoryValue` for a required setting without a value.
    """
    for group in GROUPS[command]:
        if config.get(group) is None:
            raise ValueError(f"{group} has no value; scripts.{command.replace('config', 'train')} needs one")
    for key, value, kind in _settings(config):
        if kind.accepts(value):
            continue
        if isinstance(kind, Word) and isinstance(value, str):
            raise UnknownNameError(key, value, kind.words)
        suggested = kind.suggestion(value)
        meant = f"; did you mean {key}={suggested}?" if suggested else ""
        raise ValueError(f"{key} must be {kind}, got {shown(value)}{meant}")
    for group in {*CLOSED} & {*config}:
        known = {key.removeprefix(f"{group}.") for key in SETTINGS if key.startswith(f"{group}.")}
        if unknown := config[group].keys() - known:
            raise UnknownNameError(f"key of {group}", min(unknown), known)
        if missing := {key for key in known if f"{group}.{key}" not in OPTIONAL} - config[group].keys():
            raise ValueError(f"{group}.{min(missing)} has no value; set it: {group}.{min(missing)}=…")


def check_added_keys(config: DictConfig, command: str) -> None:
    """Raises `UnknownNameError` for an added key (`+key=…`) that no code and no interpolation (`${key}`) reads."""
    overrides = HydraConfig.get().overrides
    texts = OmegaConf.to_yaml(config) + OmegaConf.to_yaml(overrides)  # the run folder's name may contain a key
    of_algo = {key.split(".")[1] for key in SETTINGS if key.startswith("algo.")} | {"probability_mask"}
    for override in written(overrides.task):
        key, *rest = override_key(override).split(".")
        if not override.startswith("+") or key not in config:  # it chooses from a group
            continue
        kind, known = "key", {*GROUPS[command], *KEYS[command]}
        if key == "algo" and rest:
            kind, key, known = "key of algo", rest[0], of_algo
        if key not in known and not re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", texts):
            raise UnknownNameError(kind, key, known)


def shown(value: Any) -> str:
    """A value in the syntax of the command line, with quotes around texts; long values are shortened."""
    if isinstance(value, (DictConfig, ListConfig)):
        value = OmegaConf.to_container(value)
    text = {"None": "null", "True": "true", "False": "false"}.get(str(value), repr(value))
    return text if len(text) <= 80 else f"{text[:77]}…"


def _settings(config: DictConfig, parents: tuple[str, ...] = (), name: str = "") -> Iterator[tuple[str, Any, Kind]]:
    """Key, value and kind of each setting whose kind is known. `name` is the name of the `_target_` of `config`."""
    for part in config:
        key = (*parents, str(part))
        if part == "_target_":
            continue
        value = config[part]  # raises if it is missing
        if kind := _kind_of(key, name):
            yield ".".join(key), value, kind
        if isinstance(value, DictConfig) and kind != FREE and (kind or parents):
            package, _, rest = str(value.get("_target_", f"{OUR_PACKAGES[0]}.")).partition(".")
            if package in OUR_PACKAGES:
                yield from _settings(value, key, rest.rpartition(".")[2])


def _kind_of(key: tuple[str, ...], name: str) -> Kind | None:
    ends = [f"{name}.{key[-1]}", *(".".join(key[at:]) for at in range(len(key)))]
    return next((SETTINGS[end] for end in ends if end in SETTINGS), None)
