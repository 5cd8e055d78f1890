"""The audit's statistics: pairs, ranges and shortened episodes."""

import numpy as np
import pytest

from agents.episode import Turn
from agents.prompts import Transcript
from benchmarks import audit
from benchmarks.audit import LastTurns, Results, Rows, paired, unpaired
from envs.core import UnknownNameError
from tests.agents.toys import random_policy


def played(solved: list[list[bool]], turns: list[list[int]]) -> Results:
    rates = np.array(solved).mean(1)
    return Results([f"task-{i}" for i in range(len(solved))], rates, rates, np.array(turns), np.array(solved))


def test_a_step_limit_cuts_off_slow_solutions() -> None:
    base = played([[True, True], [True, False], [False, False]], [[5, 31], [30, 50], [50, 50]])
    assert base.within(50).tolist() == [1.0, 0.5, 0.0]
    assert base.within(30).tolist() == [0.5, 0.5, 0.0]


def test_a_paired_interval_is_narrower_where_tasks_resemble_themselves() -> None:
    rng = np.random.default_rng(0)
    before = (rng.random(400) < 0.5).astype(float)
    after = np.where(rng.random(400) < 0.05, 1.0, before)
    (low, high), (wide_low, wide_high) = paired(after - before), unpaired(before, after)
    assert low > 0 > wide_low
    assert high < wide_high
    assert (low + high) / 2 == pytest.approx((wide_low + wide_high) / 2) == pytest.approx(np.mean(after - before))


def test_the_best_of_equal_checkpoints_is_better_than_they_are() -> None:
    rows = Rows("toy", played([[True, False]] * 50, [[1, 1]] * 50))
    rows.best_of()
    rows.drawn(50)
    best, drawn, *_ = rows.rows
    assert best.after > best.before + 0.05
    assert drawn.after == pytest.approx(drawn.before, abs=0.01)


def test_a_shortened_history_has_the_first_turn_and_the_last_ones() -> None:
    tokenizer = random_policy().tokenizer
    turns: list[Turn] = []
    for number, seen in enumerate(["room 1", "room 2", "room 3", "room 4"]):
        prompt = Transcript().prompt_ids(tokenizer, turns, seen, {})
        action = Transcript().action_ids(tokenizer, "go right")
        turns.append(
            Turn(seen, "go right", 0.0, "", prompt_ids=prompt, completion_ids=action, logprobs=[0.0] * len(action))
        )
        assert LastTurns(5).prompt_ids(tokenizer, turns, "room 9", {}) == Transcript().prompt_ids(
            tokenizer, turns, "room 9", {}
        ), number
    short = LastTurns(1).prompt_ids(tokenizer, turns, "room 9", {})
    text = tokenizer.decode(short)
    assert [seen in text for seen in ("room 1", "room 2", "room 3", "room 4", "room 9")] == [
        True,
        False,
        False,
        True,
        True,
    ]


def test_missing_inputs_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        audit.main(["--parts=alfworl"])
    with pytest.raises(SystemExit):
        audit.main([])
    assert "--parts webshop needs no model" in capsys.readouterr().err
