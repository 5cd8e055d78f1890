"""`scripts.plan`: its output, its models and GPUs, and measured figures."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from algorithms.plan import GPUS, SHAPES, Training, Work, decode_step, flops_per_id, rollout_seconds
from tests.scripts.test_commands import Cli, a_policy

ROOT = Path(__file__).parents[2]
QWEN = "model=Qwen/Qwen2.5-7B-Instruct"
SHAPE = "shape={width: 3584, feed_forward: 18944, layers: 28, heads: 28, kv_heads: 4, vocabulary: 152064}"


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(tmp_path, capsys, monkeypatch)


def planned(cli: Cli, *arguments: str) -> str:
    code, out, err = cli("plan", *arguments)
    assert (code, err) == (0, "")
    return out


def row(out: str, name: str) -> list[str]:
    """The cells of a row of the printed tables."""
    (line,) = [line for line in out.splitlines() if line.strip().startswith(f"{name}  ")]
    return line.replace(name, "").split()


def test_a_plan_has_memory_bytes_seconds_and_the_best_schedule(cli: Cli) -> None:
    out = planned(cli, QWEN, "trainer.groups=64")
    assert "7.62B parameters, all are trained" in out
    assert "512 episodes × 20 turns (at most 20) × (200 sampled + 150 read) ids = 3.58M ids" in out
    assert row(out, "weights") == ["30.5", "3.8", "15.6", "2.2"]
    assert row(out, "optimizer")[:2] == ["60.9", "7.6"]
    assert "too large: 152.2" in out
    assert "a transfer of weights to engines: 15.2 GB in 1.3 s" in out
    updates = [float(cell) for cell in row(out, "update, s")]
    assert updates == sorted(updates)
    apart, turns = out.splitlines()[-1], out.splitlines()[-2]
    assert turns.startswith("best in turns: parallel=shards, ")
    assert apart.startswith("best apart: ")
    assert f"{updates[0]} s an update" in apart
    assert f"{updates[1]} s an update" in turns
    assert f"{updates[1] / updates[0]:.2f} times as fast" in apart
    assert list(cli.folder.iterdir()) == []


def test_the_settings_of_a_run_are_read(cli: Cli) -> None:
    out = planned(cli, "+experiment=alfworld_gigpo_lora_24gb", "gpus=1", "gpu=rtx4090", "plan.turns=20")
    assert "adapters of rank 32 are trained" in out
    assert "64 episodes × 20 turns (at most 50)" in out
    assert row(out, "parallel") == ["none"]
    assert float(row(out, "reference")[0]) > 0
    assert "not counted: the weights of algo.signals.critic" in planned(cli, QWEN, "algo=ppo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "scripts.plan needs a model: model=FOLDER"),
        ([QWEN, "gpu=h1000"], "unknown gpu 'h1000'; did you mean 'h100'"),
        ([QWEN, "plan.turns=30"], "plan.turns=30 is more than trainer.max_turns=20"),
        (["model=Qwen/Qwen2.5-72B"], "the largest part is optimizer, 72.7 GB; what would fit: gpus="),
        (["shape={width: 3584}"], "shape needs feed_forward, layers, heads, kv_heads, vocabulary"),
        ([f"{SHAPE[:-1]}, depth: 3}}"], "unknown key of shape 'depth'"),
    ],
)
def test_a_mistake_is_an_error_of_one_line(cli: Cli, arguments: list[str], message: str) -> None:
    code, _, err = cli("plan", *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message in err


def test_a_folder_a_run_and_a_shape_are_models_too(cli: Cli) -> None:
    assert planned(cli, SHAPE).splitlines()[0] == "the shape: 7.62B parameters, all are trained"
    run = a_policy(cli.folder / "run")
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert "trained" in planned(cli, f"model={run}")
    (checkpoint / "config.json").unlink()
    assert cli("plan", f"model={run}")[2].endswith("expected a model of Hugging Face or a training run\n")


def test_the_page_shows_what_the_command_prints(cli: Cli) -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    command, shown = re.findall(r"```bash\npython -m scripts\.plan (.+)\n```\n\n```text\n(.*?)```", page, re.DOTALL)[0]
    out = planned(cli, *shlex.split(command))
    assert "\n".join(line.rstrip() for line in out.splitlines()) + "\n" == shown


def test_the_scripts_for_clusters_are_well_formed() -> None:
    script = ROOT / "examples" / "slurm" / "train.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    service, job = yaml.safe_load_all((ROOT / "examples" / "kubernetes" / "train.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    subprocess.run(["bash", "-nc", container["args"][0]], check=True)
    for text in (script.read_text(encoding="utf-8"), container["args"][0]):
        assert "--rdzv-backend c10d" in text
        assert "-m scripts.train" in text


# -- what was measured ------------------------------------------------------------------------------------------------
def measured(folder: Path, gpus: int, mfu: float, decode: float) -> Path:
    """The folder of a run on H100s, with the metrics that shares of them give. Its first update warms up."""
    shape, gpu, work = SHAPES["Qwen2.5-7B"], GPUS["h100"], Work(64, 8, 8, 120, 80, 4, 0.0)
    step = decode_step(shape.parameters, 64 / gpus, work.context, shape.kv_bytes, 1, decode * gpu.bandwidth)
    rollout = rollout_seconds(work, shape.parameters, 64 / gpus / step, 1, 0.5 * gpu.peak)
    trained = mfu * gpu.peak * gpus / (flops_per_id(Training(reference=False)) * shape.parameters)
    line = {
        "rollout/episodes": 64, "rollout/turns": 8.0, "tokens/sampled": int(work.sampled_ids),
        "tokens/trained": int(work.ids), "tokens/prefix_breaks": 64, "perf/trained_tokens_per_s": trained,
        "time/rollout_s": rollout / gpus,
    }  # fmt: skip
    (folder / ".hydra").mkdir(parents=True)
    lines = [{"update": 0, "eval/x/success": 0.5}, {**line, "time/rollout_s": 1e3}, line, line]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trainer = {"epochs": 1, "minibatches": 2, "micro_batch_tokens": 8192, "gradient_checkpointing": True,
               "precision": "bfloat16", "correction": None}  # fmt: skip
    OmegaConf.save({"trainer": trainer, "algo": {"kl_coef": 0.0}, "policy": {}}, folder / ".hydra" / "config.yaml")
    config = {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "checkpoints" / "update-000003").mkdir(parents=True)
    (folder / "checkpoints" / "update-000003" / "config.json").write_text(json.dumps(config))
    return folder


def test_a_measured_run_gives_its_episodes_and_the_shares_that_it_reached(cli: Cli) -> None:
    run = measured(cli.folder / "run", 4, 0.42, 0.31)
    out = planned(cli, QWEN, f"measured={run}")
    assert "128 episodes × 8 turns (at most 20) × (120 sampled + 80 read) ids" in out  # the number is the planned run's
    assert "for 440 ids" in out  # four turns a sequence: 4 · 200 / 2 + 80 / 2
    assert "mfu 0.35, decode 0.6" in out
    out = planned(cli, QWEN, f"measured={run}", "plan.measured_gpus=4")
    assert "rates: mfu 0.42, decode 0.31, prefill 0.5" in out
    code, _, err = cli("plan", QWEN, f"measured={run}", "plan.measured_gpus=1")
    assert code == 2
    assert "with plan.measured_gpus=1 × NVIDIA H100 80GB HBM3 the measured run would reach mfu=1.68" in err


def test_a_run_without_updates_is_refused(cli: Cli) -> None:
    run = measured(cli.folder / "run", 4, 0.42, 0.31)
    (run / "metrics.jsonl").write_text('{"update": 0}\n')
    code, _, err = cli("plan", QWEN, f"measured={run}")
    assert code == 2
    assert "has no update yet" in err
    (cli.folder / "gpu.json").write_text("[1]")
    assert cli("plan", QWEN, "benchmark=gpu.json")[2] == "error: gpu.json is damaged: expected a JSON object\n"


def test_a_benchmark_of_the_same_gpu_gives_shares(cli: Cli) -> None:
    figures = {
        "device": "NVIDIA H200",
        "0.5b": {"training, checkpointed": {"utilisation": 0.1}, "sampling, vllm": {"failed": "MemoryError"}},
        "7b": {
            "training": {"utilisation": 0.5}, "training, checkpointed": {"utilisation": 0.36},
            "sampling, vllm": {"decoding": {"bandwidth": 0.7}}, "two gpus": {"weight_transfer_gb_per_s": 120.0},
        },
    }  # fmt: skip
    (cli.folder / "gpu.json").write_text(json.dumps(figures))
    out = planned(cli, QWEN, "gpu=h200", "benchmark=gpu.json")
    assert "rates: mfu 0.48, decode 0.7, prefill 0.5, network 120 GB/s" in out  # 0.36 · 8 / 6
    assert "mfu 0.5," in planned(cli, QWEN, "gpu=h200", "benchmark=gpu.json", "trainer.gradient_checkpointing=false",
                                 "trainer.micro_batch_tokens=4096")  # fmt: skip
    code, _, err = cli("plan", QWEN, "gpu=h100", "benchmark=gpu.json")
    assert code == 2
    assert "was measured on 'NVIDIA H200', and the plan is for 'NVIDIA H100 80GB HBM3'; gpu=h200 is the one" in err
