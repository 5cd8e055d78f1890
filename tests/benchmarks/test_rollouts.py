"""The benchmark of rollouts, in its smallest size: its sides do the same work, and its JSON has the ratios."""

import json
from pathlib import Path

import pytest

from benchmarks import rollouts
from benchmarks.rollouts import Size, make_world
from envs.core import UnknownNameError

pytest.importorskip("alfworld", reason="needs polyturn[alfworld]")

TINY = ["--episodes=2", "--group=2", "--turns=3", "--new-tokens=2", "--micro-batch=1", "--repeats=1"]


def measured(*arguments: str, output: Path) -> dict:
    rollouts.main([*TINY, *arguments, f"--output={output}"])
    return json.loads(output.read_text())


def test_the_engine_and_kept_keys_and_values_are_compared(tmp_path: Path, capsys, monkeypatch) -> None:
    found = rollouts.find_spec
    monkeypatch.setattr(rollouts, "find_spec", lambda name: None if name == "vllm" else found(name))
    figures = measured("--parts=orchestration,kv", output=tmp_path / "figures.json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    engine = figures["orchestration"]["hf"]
    assert engine["same_ids"] == 1.0  # what was asked again was the same work
    assert 0 < engine["share"]["low"] <= engine["share"]["median"] <= engine["share"]["high"]
    assert engine["rollout_over_engine"]["median"] > 0
    assert set(figures["kv"]["turns_per_s"]) == {"kept", "read_again"}
    assert figures["kv"]["ratio"]["low"] > 0
    assert figures["notes"] == ["orchestration with vLLM was left out: no vllm"]


def test_trl_samples_as_much_and_computes_the_same_gradient(tmp_path: Path) -> None:
    """Otherwise the benchmark raises."""
    pytest.importorskip("trl")
    figures = measured("--parts=trl,update", output=tmp_path / "figures.json")
    assert set(figures["trl"]["ratio"]) == {"environment_factory", "rollout_func"}
    assert figures["trl"]["sampled_tokens"] == 2 * 3 * 2
    assert len(set(figures["trl"]["tokens"].values())) == 1
    assert {"ratio", "memory_ratio"} < set(figures["update"])


def test_scripted_games_ignore_the_action(tmp_path: Path) -> None:
    world = make_world(Size(4, 2, 6, 2, 1, 1), tmp_path)
    env = world.make()
    played = []
    for action in ("look", "dance"):
        env.reset(options={"task": world.tasks[0]})
        played.append([env.step(action)[:4] for _ in range(6)])
    assert played[0] == played[1]
    assert not any(terminated or truncated for _, _, terminated, truncated in played[0])
    assert len({text for text, *_ in played[0]}) > 2


def test_an_unknown_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'kv'"):
        measured("--parts=kvs", output=tmp_path / "none.json")
