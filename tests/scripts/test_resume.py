"""Checkpoints contain the facts of a run, and resuming with other facts is refused."""

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from algorithms.checkpoint import load_run, save_checkpoint
from envs.checksums import SUMS
from envs.facts import Facts
from scripts import common, train
from scripts.common import Terminal
from tests.agents.corridors import Corridors
from tests.agents.toys import random_policy
from tests.algorithms.test_initial_policy import configured, leaves, other


def facts_of(config: DictConfig, splits: Sequence[str] = ("valid",)) -> Facts:
    config = config.copy()
    config.eval.splits = list(splits)
    return train._facts(config, Corridors(), Corridors().manifest("train"))


def compare(before: Facts, now: Facts) -> str:
    """Returns the output. Raises if the run is another one."""
    console = Terminal(file=io.StringIO(), width=200)
    train._compare(before, now, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that the command line of this start sets."""
    keys: list[str] = []
    monkeypatch.setattr(common, "_user_keys", keys)
    return keys


@pytest.mark.parametrize("is_asked", [False, True])
def test_every_setting_is_compared_unless_it_is_left_out(asked: list[str], is_asked: bool) -> None:
    """With the settings that may change, only where this start asks for it: another default is no wish."""
    config = configured("+new.key=1")
    before = facts_of(config)
    for name, value in leaves(OmegaConf.to_container(config, resolve=False)):  # type: ignore[arg-type]
        if name == "split" or name == "eval.splits" or name in train.LEFT_OUT:
            continue
        changed = config.copy()
        OmegaConf.update(changed, name, other(value), force_add=True)
        asked[:] = [name] if is_asked else []
        if is_asked and name.partition(".")[0] in train.MAY_CHANGE["train"]:
            assert f"changed since the last start: {name} was" in compare(before, facts_of(changed))
        else:
            differs = rf"with other settings: .*{name.removeprefix('env.')}(\.more)? was"
            with pytest.raises(ValueError, match=differs):
                compare(before, facts_of(changed))


def test_another_manifest_is_refused(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the data has changed since. Other splits to evaluate are no other run."""
    config = configured()
    before = facts_of(config)
    with monkeypatch.context() as patch:
        patch.setattr("tests.agents.corridors.hash_tasks", lambda _: "other tasks")
        with pytest.raises(ValueError, match=r"manifests\.train\.sha256 was"):
            compare(before, facts_of(config))
    asked.append("eval.splits")
    assert "eval.splits was ['valid'] and is ['train']" in compare(before, facts_of(config, ["train"]))
    assert compare(before, before) == ""


def test_other_installed_versions_are_printed(asked: list[str]) -> None:
    before = facts_of(configured())
    old = {**before, "agents_code": "0", "versions": {**before["versions"], "torch": "1.0"}}
    assert "versions.torch was 1.0" in compare(old, before).replace("'", "")
    assert "agents_code was '0'" in compare(old, before)


def test_a_checkpoint_stores_the_facts_of_the_run(tmp_path: Path) -> None:
    policy, facts = random_policy(), facts_of(configured())
    save_checkpoint(tmp_path / "kept", policy.model, policy.tokenizer, {"update": 1}, facts)
    assert load_run(tmp_path / "kept") == facts
    (tmp_path / "kept" / "run.json").write_text('{"env')
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        load_run(tmp_path / "kept")
    for name in ("run.json", SUMS):
        (tmp_path / "kept" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no run\.json"):
        load_run(tmp_path / "kept")
