"""The planner's formulas: published sizes of models, a table that was computed before, a model's memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.policies.lora import Lora, add_adapters
from algorithms.memory import estimate_memory
from algorithms.plan import (
    GPUS,
    SHAPES,
    Planner,
    Rates,
    Shape,
    Training,
    Work,
    decode_step,
    episode_seconds,
    known_shape,
    pass_bytes,
    reached_decode,
    reached_mfu,
    rollout_seconds,
    training_memory,
    training_seconds,
    transfer_seconds,
)
from benchmarks.gpu import SHAPES as BENCHMARKED
from envs.core import UnknownNameError
from tests.agents.toys import random_policy
from tests.algorithms.test_trainer import learner_config

H100 = GPUS["h100"]
PUBLISHED = {  # parameters, as the files of the models have them (safetensors on huggingface.co)
    "Qwen2.5-0.5B": 494_032_768, "Qwen2.5-1.5B": 1_543_714_304, "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512, "Qwen2.5-14B": 14_770_033_664, "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648, "Qwen3-0.6B": 596_049_920, "Qwen3-1.7B": 1_720_574_976, "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360, "Qwen3-14B": 14_768_307_200, "Qwen3-32B": 32_762_123_264,
    "Llama-3.1-8B": 8_030_261_248, "Llama-3.1-70B": 70_553_706_496, "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
}  # fmt: skip


# -- facts ------------------------------------------------------------------------------------------------------------
def test_the_shapes_have_the_published_sizes() -> None:
    assert PUBLISHED.keys() == SHAPES.keys()
    for name, parameters in PUBLISHED.items():
        assert SHAPES[name].parameters == pytest.approx(parameters, rel=1e-4), name  # biases are left out


@pytest.mark.parametrize("tied", [False, True])
def test_a_shape_is_read_from_a_configuration_of_transformers(tied: bool) -> None:
    config = replace(BENCHMARKED["tiny"], key_value_heads=2).config()
    config.tie_word_embeddings = tied
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = Shape.of_config(config.to_dict())
    biases = sum(t.numel() for name, t in model.named_parameters() if name.endswith("bias"))
    assert shape.parameters == sum(t.numel() for t in model.parameters()) - biases


def test_adapters_are_counted() -> None:
    pytest.importorskip("peft")
    model = random_policy().model
    shape = Shape.of_config(model.config.to_dict())
    add_adapters(model, Lora(4, 8), "model")
    assert shape.adapters(4) == sum(t.numel() for t in model.parameters() if t.requires_grad)


def test_models_that_cannot_be_planned_are_named() -> None:
    with pytest.raises(ValueError, match=r"'gpt2' cannot be planned: its config\.json has no hidden_size"):
        Shape.of_config({"model_type": "gpt2", "n_embd": 768})
    experts = dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), 8)
    with pytest.raises(ValueError, match=r"it has experts \(num_experts\)"):
        Shape.of_config({"vocab_size": 8, "num_experts": 128, **experts})


def test_a_published_name_is_found_and_a_wrong_one_has_its_neighbours() -> None:
    assert known_shape("Qwen/Qwen2.5-7B-Instruct-1M") == known_shape("qwen2.5-7b") == SHAPES["Qwen2.5-7B"]
    assert known_shape("meta-llama/Meta-Llama-3.1-8B") == SHAPES["Llama-3.1-8B"]
    with pytest.raises(UnknownNameError, match=r"did you mean .*'Qwen2.5-7B'.*or give a folder, or shape="):
        known_shape("Qwen/Qwen2.5-7")


def test_plans_need_no_torch() -> None:
    code = "import sys, scripts.plan; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# -- a table that was computed before ---------------------------------------------------------------------------------
class Row:
    """A row of the table of the design for several machines: H100, mfu 0.35, engines of 0.6 of the memory.

    It gives an engine as many episodes side by side as fit, whatever there are, and half a sequence as the mean context
    (`Work.context` adds half of an observation). So the terms are computed here from the formulas, not by `Planner`.
    """

    def __init__(
        self, parameters: float, shape: Shape, episodes: int, turns: int, ids: tuple[int, int], engine: int
    ) -> None:
        self.parameters = parameters
        work = Work(episodes, turns, turns, *ids, sequence_turns=turns, env_seconds=0.05)
        context = turns * sum(ids) / 2
        batch = (0.6 * H100.memory * engine - 2 * parameters) / (context * shape.kv_bytes)
        step = decode_step(parameters, batch, context, shape.kv_bytes, engine, 0.6 * H100.bandwidth)
        self.rollout = rollout_seconds(work, parameters, batch / step, engine, 0.5 * H100.peak)
        training = Training(reference=True, correction=False, checkpointing=True)
        self.training = training_seconds(training, parameters, work.ids, 0.35 * H100.peak)
        self.longest = episode_seconds(work, step)
        self.sync = transfer_seconds(parameters, 50e9, 1.0)

    def in_turns(self, gpus: int) -> float:
        return max(self.rollout / gpus, self.longest) + self.training / gpus + 2 * self.sync

    def apart(self, engines: int, trainers: int) -> float:
        return max(self.training / trainers, self.rollout / engines) + self.sync

    def engines(self, gpus: int) -> int:
        return round(gpus * self.rollout / (self.rollout + self.training))


def test_the_row_of_7b_has_the_printed_digits() -> None:
    row = Row(7.6e9, SHAPES["Qwen2.5-7B"], 512, 20, (200, 150), 1)
    assert [round(seconds) for seconds in (row.rollout, row.training, row.longest)] == [346, 787, 97]
    assert row.in_turns(8) == pytest.approx(197.49, abs=0.005)  # the table has 198, from 197.5
    assert [round(row.in_turns(gpus)) for gpus in (64, 512)] == [111, 101]
    assert [row.engines(gpus) for gpus in (64, 512)] == [20, 157]
    assert round(row.apart(2, 6), 1) == 174.5  # the table has 175
    assert [round(row.apart(20, 44)), round(row.apart(157, 355), 1)] == [19, 3.5]
    assert [row.longest / row.apart(*split) for split in ((2, 6), (20, 44), (157, 355))] == pytest.approx(
        [0.55, 5.03, 27.4], abs=0.05
    )  # rounded up, the lags 1, 6 and 28


def test_the_row_of_32b_has_the_printed_digits() -> None:
    row = Row(32.8e9, SHAPES["Qwen2.5-32B"], 1024, 30, (500, 500), 4)
    assert round(row.longest) == 360
    assert row.in_turns(64) == pytest.approx(1204.48, abs=0.005)  # the table has 1,205
    assert round(row.in_turns(512)) == 421
    assert [row.engines(gpus) for gpus in (64, 512)] == [40, 318]
    assert [round(row.apart(40, 24)), round(row.apart(318, 194))] == [1215, 152]


def test_the_decode_step_depends_on_the_number_of_episodes_in_an_engine() -> None:
    """64 engines have 8 of the 512 episodes each, not 163, so a step reads fewer caches."""
    work = Work(512, 20, 20, 200, 150, sequence_turns=20, env_seconds=0.05)
    planner = Planner(SHAPES["Qwen2.5-7B"], work, Training(), H100, 64)
    (turns,) = [s for s in planner.fitting(1) if s.in_turns and s.sharded]
    assert turns.batch == 8
    assert turns.longest == pytest.approx(20 * (200 * planner.step(8, 1) + 0.05))
    assert 30 < turns.longest < 40
    assert turns.update < 60


def test_the_fastest_split_of_gpus_between_sampling_and_training_is_found() -> None:
    work = Work(512, 20, 20, 200, 150, sequence_turns=20, env_seconds=0.05)
    found = Planner(SHAPES["Qwen2.5-7B"], work, Training(), H100, 8).fitting()
    best = min((s for s in found if not s.in_turns), key=lambda s: s.update)
    assert best.engines + best.trainers == 8
    assert best.update == min(s.update for s in found if not s.in_turns)
    assert all(1 <= s.lag <= 4 for s in found if not s.in_turns)


# -- memory -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("checkpointing", [False, True])
def test_replicas_have_the_memory_that_a_run_estimates(checkpointing: bool) -> None:
    model = random_policy(layers=4).model
    config = replace(
        learner_config(kl_coef=0.1, micro_batch_tokens=640, gradient_checkpointing=checkpointing), precision="float32"
    )
    theirs = estimate_memory(model, config, 1)
    training = Training(
        reference=True, checkpointing=checkpointing, computed=4, micro_batch_tokens=config.micro_batch_tokens
    )
    ours = training_memory(Shape.of_config(model.config.to_dict()), training, 1, sharded=False)
    norms = sum(t.numel() for name, t in model.named_parameters() if "q_norm" in name or "k_norm" in name)
    for part, size in {"weights": 4, "gradients": 4, "optimizer": 8, "reference": 4}.items():
        assert ours[part] == theirs[part] - size * norms, part  # norms of heads are left out
    assert ours["activations"] + ours["logits"] == theirs["activations"]
    assert ours["bfloat16 copies"] == theirs["autocast"] == 0


def test_shards_divide_what_is_kept_and_gather_what_computes() -> None:
    shape = SHAPES["Qwen2.5-7B"]
    one, eight = (training_memory(shape, Training(), ranks, sharded=True) for ranks in (1, 8))
    for part in ("weights", "gradients", "optimizer", "reference"):
        assert eight[part] == one[part] / 8
    assert eight["gathered layers"] == one["gathered layers"] == 6 * (shape.of_layer + shape.of_root)
    lora = training_memory(shape, Training(adapters=32), 8, sharded=True)
    assert lora["weights"] == 2 * shape.parameters / 8 + 4 * shape.adapters(32)
    assert lora["optimizer"] == 8 * shape.adapters(32)


def test_a_pass_sends_what_the_formula_says() -> None:
    assert pass_bytes(Training(), 7.6e9, 8, True) == 8 * 7.6e9 * 7 / 8
    assert pass_bytes(Training(computed=4), 7.6e9, 8, True) == 12 * 7.6e9 * 7 / 8
    assert pass_bytes(Training(), 7.6e9, 1, True) == 0


# -- limits and errors ------------------------------------------------------------------------------------------------
SMALL = Work(128, 10, 10, 100, 100, sequence_turns=10, env_seconds=0.05)


def schedules(gpus: int = 8, rates: Rates | None = None, work: Work = SMALL, gpu: str = "h100", **training: int):
    planner = Planner(SHAPES["Qwen2.5-7B"], work, Training(**training), GPUS[gpu], gpus, rates or Rates())
    return [s for s in planner.fitting() if s.in_turns and s.sharded]


def test_what_limits_an_update_is_named() -> None:
    assert schedules(work=replace(SMALL, episodes=512))[0].limit == "training compute"
    assert schedules(rates=Rates(mfu=1.0, decode=0.1))[0].limit == "decode bandwidth"
    assert schedules(rates=Rates(sync_seconds=100))[0].limit == "weight transfer"
    assert schedules(work=replace(SMALL, longest=500, episodes=8))[0].limit == "the longest episode"
    assert schedules(gpu="l40s", micro_batch_tokens=512)[0].limit == "interconnect"
    tight = Rates(mfu=1.0, decode=0.1, engine_memory=0.2)
    assert schedules(rates=tight)[0].limit == "memory"
    assert schedules(rates=tight)[0].batch < 128 / 8


def test_the_error_if_nothing_fits_names_the_largest_part_and_what_would_fit() -> None:
    with pytest.raises(ValueError, match=r"largest part is optimizer, 60\.9 GB; what would fit: gpus=4") as raised:
        Planner(SHAPES["Qwen2.5-7B"], SMALL, Training(reference=False), H100, 1).check(None)
    assert "gpu=b200" in str(raised.value)
    assert "policy=lora" in str(raised.value)
    planner = Planner(SHAPES["Qwen2.5-72B"], SMALL, Training(), H100, 8)
    with pytest.raises(ValueError, match=r"gpus=\d+ with trainer\.micro_batch_tokens=\d+") as raised:
        planner.check(None)
    assert "or policy=lora" in str(raised.value)
    with pytest.raises(ValueError, match=r"sampling needs .* the largest part is engine's weights, 29\.5 GB"):
        Planner(SHAPES["Qwen2.5-14B"], SMALL, Training(micro_batch_tokens=512), GPUS["rtx4090"], 512).check(1)


def test_engines_of_gpus_that_do_not_divide_heads_or_gpus_are_refused() -> None:
    planner = Planner(SHAPES["Qwen2.5-7B"], SMALL, Training(), H100, 8)
    with pytest.raises(ValueError, match=r"tensor_parallel=8 must divide the 28 attention heads .* gpus=8: 1, 2, 4"):
        planner.check(8)
    planner.check(4)


# -- figures that were measured ---------------------------------------------------------------------------------------
def test_a_plan_from_its_own_predicted_measurements_is_the_same() -> None:
    planner = Planner(
        SHAPES["Qwen2.5-7B"], SMALL, Training(epochs=2, minibatches=4), H100, 8, Rates(mfu=0.41, decode=0.53)
    )
    (plan,) = [s for s in planner.fitting(1) if s.in_turns and s.sharded]
    rate = planner.work.ids * 2 / plan.training / 8
    assert reached_mfu(planner.training, planner.shape.parameters, rate, H100.peak) == pytest.approx(0.41)
    reached = reached_decode(SMALL, planner.shape, plan.batch, plan.rollout * 8, H100.bandwidth, 0.5 * H100.peak)
    assert reached == pytest.approx(0.53)
