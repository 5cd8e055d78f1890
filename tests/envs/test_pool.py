"""The pool: results do not depend on workers, every wait has a limit, and failures stay in their environment."""

import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import envs.pool
import envs.pool_worker
from envs.core import StopReason, Task
from envs.pool import EnvPool, Outcome
from envs.pool_env import Command
from envs.pool_worker import HEAD, Worker
from tests.envs.puppets import Database, Dying, Fickle, Puppet, ThirdParty, Unsaved, make_bad_closer, make_nothing

ROOT = Path(__file__).parents[2]
PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for processes in /proc")
HERE_AND_THERE = pytest.mark.parametrize("workers", [0, 1])
WORKERS = pytest.mark.parametrize("workers", [0, 1, 2])


def task(number: int, **payload: Any) -> Task:
    return Task(id=f"task {number}", env="Puppet-v0", seed=number, payload=payload)


def tasks(size: int) -> dict[int, Task]:
    return {slot: task(slot) for slot in range(size)}


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def play(workers: int) -> list[dict[int, Outcome]]:
    with EnvPool(Puppet, size=5, workers=workers) as pool:
        log = [pool.reset(tasks(5)), pool.step({4: "a", 0: "b"}), pool.step(dict.fromkeys(range(5), "c"))]
        log += [pool.reset({1: task(7)}, seeds={1: 99}), pool.step({3: "raise", 1: "d", 2: "win"})]
        log += [pool.reset({2: task(8), 3: task(9)}), pool.step({2: "e", 3: "f"})]
    for outcome in (outcome for outcomes in log for outcome in outcomes.values() if outcome.error):
        outcome.error = None  # tracebacks name other lines of the same story
    return log


def test_results_do_not_depend_on_the_number_of_workers() -> None:
    here = play(0)
    assert here[0][4].observation.startswith("task 4 with seed 4")
    assert here[3][1].observation.startswith("task 7 with seed 99")
    assert list(here[1]) == [4, 0]
    assert here[4][2].terminated
    assert play(1) == here
    assert play(3) == here


@WORKERS
def test_an_error_has_its_traceback_and_stays_in_its_slot(workers: int) -> None:
    with EnvPool(Puppet, size=3, workers=workers) as pool:
        pool.reset(tasks(3))
        outcomes = pool.step({0: "a", 1: "raise", 2: "a"})
        assert outcomes[1].over
        assert outcomes[1].error is not None
        assert outcomes[1].error.reason is StopReason.ENV_ERROR
        assert "ValueError: a puppet's error" in outcomes[1].error.text
        assert "in _obey" in outcomes[1].error.text
        assert outcomes[0].error is None
        assert outcomes[2].error is None
        again = pool.step({1: "a", 2: "b"})
        assert again[1].error is not None
        assert "EpisodeOverError" in again[1].error.text
        assert again[2].observation.startswith("['a', 'b']")
        assert pool.reset({1: task(1)})[1].error is None
        assert pool.step({1: "fresh"})[1].observation.startswith("['fresh']")


@WORKERS
@pytest.mark.parametrize("hang", ["sleep", "spin", "wait"])
def test_a_step_after_its_deadline_fails_alone(workers: int, hang: str) -> None:
    with EnvPool(Puppet, size=4, workers=workers, step_timeout=1) as pool:
        pool.reset(tasks(4))
        outcomes = pool.step({0: "a", 1: "a", 2: hang, 3: "a"})
        error = outcomes[2].error
        assert error is not None
        assert error.reason is StopReason.STEP_TIMEOUT
        assert "step of env 2: no answer in 1 s" in error.text
        assert "in _obey" in error.text, "the stack says where it hangs"
        after = pool.step({0: "b", 1: "b", 3: "b"})
        assert [after[slot].observation[:10] for slot in (0, 1, 3)] == ["['a', 'b']"] * 3
        assert pool.reset({2: task(2)})[2].error is None


def test_only_what_is_in_the_pipe_is_read() -> None:
    """An environment may have written a length there, which nothing follows."""
    ours, theirs = multiprocessing.Pipe()
    worker = Worker(0, b"", 1.0)
    worker.connection, worker._process, worker._running, worker._ready = ours, object(), True, True
    os.write(theirs.fileno(), HEAD.pack(1 << 27) + b"x")
    worker.receive({}, ended=False)
    assert len(worker._received) == HEAD.size + 1


def test_a_reset_has_a_deadline_too() -> None:
    with EnvPool(Puppet, size=2, step_timeout=1) as pool:
        outcomes = pool.reset({0: task(0, begin="sleep"), 1: task(1)})
        assert outcomes[0].error is not None
        assert "reset of env 0: no answer in 1 s" in outcomes[0].error.text
        assert outcomes[1].error is None


def play_from_snapshots(workers: int) -> list[dict[int, Outcome]]:
    """Slot 0 is taken back to its middle, slot 3 (in another worker) goes on from there too, as does new slot 4."""
    with EnvPool(Puppet, size=5, workers=workers) as pool:
        pool.reset(tasks(4))
        pool.step({0: "a", 3: "a"})
        state = pool.snapshot([0, 3])[0].snapshot
        log = [pool.step({0: "b"}), pool.step({0: "c"})]
        pool.restore(dict.fromkeys((0, 3, 4), state))
        return [*log, pool.step(dict.fromkeys((0, 3, 4), "b")), pool.step(dict.fromkeys((4, 3, 0), "c"))]


@WORKERS
def test_a_snapshot_goes_on_the_same_in_any_slot(workers: int) -> None:
    then, later, again, and_later = play_from_snapshots(workers)
    assert then[0].observation.startswith("['a', 'b']")
    assert list(again.values()) == [then[0]] * 3
    assert list(and_later.values()) == [later[0]] * 3


@WORKERS
@pytest.mark.parametrize(("order", "reason"), [("raise", StopReason.ENV_ERROR), ("sleep", StopReason.STEP_TIMEOUT)])
def test_a_snapshot_that_fails_is_an_error_of_its_slot(workers: int, order: str, reason: StopReason) -> None:
    with EnvPool(Puppet, size=3, workers=workers, step_timeout=1) as pool:
        pool.reset({0: task(0), 1: task(1, saving=order), 2: task(2)})
        outcomes = pool.snapshot([0, 1, 2])
        error = outcomes[1].error
        assert error is not None
        assert error.reason is reason
        assert "in _save" in error.text
        assert outcomes[0].error is None
        assert outcomes[2].error is None
        assert pool.restore({1: outcomes[2].snapshot})[1].error is None
        after = pool.step(dict.fromkeys(range(3), "on"))
        assert after[1] == after[2]


@WORKERS
def test_a_restore_that_fails_is_an_error_of_its_slot(workers: int) -> None:
    with EnvPool(Puppet, size=2, workers=workers) as pool:
        pool.reset(tasks(2))
        pool.step({0: "tear"})
        error = pool.restore({1: pool.snapshot([0])[0].snapshot})[1].error
        assert error is not None
        assert "a torn snapshot" in error.text
        step = pool.step({0: "a", 1: "a"})
        assert step[0].error is None
        assert step[1].error is not None
        assert "EpisodeOverError" in step[1].error.text


@WORKERS
@pytest.mark.parametrize(
    ("make", "words"),
    [(Unsaved, "Unsaved cannot take snapshots"), (ThirdParty, "ThirdParty.* cannot take snapshots: it has no sna")],
)
def test_an_environment_without_snapshots_says_so(workers: int, make: Any, words: str) -> None:
    with EnvPool(make, size=1, workers=workers) as pool:
        pool.reset({0: task(0)})
        error = pool.snapshot([0])[0].error
        assert error is not None
        assert re.search(words, error.text)
        again = pool.snapshot([0])[0].error
        assert again is not None
        assert "EpisodeOverError" in again.text


@HERE_AND_THERE
def test_an_environment_keeps_its_thread_while_others_are_late(workers: int) -> None:
    with EnvPool(Puppet, size=4, workers=workers, step_timeout=0.5) as pool:
        pool.reset(tasks(4))
        before = pool.step(dict.fromkeys(range(4), "thread"))
        late = pool.step({0: "sleep", 1: "spin"})
        assert [outcome.error and outcome.error.reason for outcome in late.values()] == [StopReason.STEP_TIMEOUT] * 2
        after = pool.step({2: "thread", 3: "thread"})
        assert [after[slot].observation for slot in (2, 3)] == [before[slot].observation for slot in (2, 3)]
        threads = {outcome.observation for outcome in before.values()}
        if workers:
            assert all(thread.endswith("True") for thread in threads), "environments have the main thread of a worker"
        else:
            assert len(threads) == 4


@HERE_AND_THERE
def test_an_environment_bound_to_a_thread_continues_beside_a_late_one(workers: int) -> None:
    with EnvPool(Database, size=3, workers=workers, step_timeout=0.5) as pool:
        pool.reset(tasks(3))
        assert pool.step({0: "a", 1: "sleep", 2: "a"})[1].error is not None
        assert [outcome.error for outcome in pool.step({0: "b", 2: "b"}).values()] == [None, None]
        assert pool.reset({1: task(1)})[1].error is None
        assert pool.step({1: "a"})[1].error is None


def test_alarms_work_in_workers_and_reach_no_other_environment() -> None:
    with EnvPool(Puppet, size=2, workers=1) as pool:
        pool.reset(tasks(2))
        assert pool.step({0: "alarm"})[0].observation == "woken 1"
        pool.step({0: "leave an alarm", 1: "nap"})
        outcomes = pool.step({1: "alarm", 0: "alarm"})
        assert [outcome.observation for outcome in outcomes.values()] == ["woken 1", "woken 2"]


@HERE_AND_THERE
def test_an_environment_that_catches_the_timeout_is_still_late(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs.pool_worker, "GRACE_SECONDS", 0.5)
    with EnvPool(Puppet, size=2, workers=workers, step_timeout=1) as pool:
        pool.reset(tasks(2))
        outcomes = pool.step({0: "go on", 1: "a"})
        assert outcomes[0].error is not None
        assert outcomes[0].error.reason is StopReason.STEP_TIMEOUT
        assert "EpisodeOverError" in str(pool.step({0: "a"})[0].error)
        assert outcomes[1].observation.startswith("['a']")


@HERE_AND_THERE
def test_an_environment_may_print_a_hundred_megabytes(workers: int) -> None:
    with EnvPool(Puppet, size=2, workers=workers) as pool:
        pool.reset(tasks(2))
        outcomes = pool.step({0: "shout", 1: "a"})
        assert [outcome.error for outcome in outcomes.values()] == [None, None]
        assert pool.step({0: "b"})[0].observation.startswith("['shout', 'b']")


@HERE_AND_THERE
def test_the_text_of_an_error_has_a_limited_length(workers: int) -> None:
    with EnvPool(Puppet, size=1, workers=workers) as pool:
        error = pool.reset({0: task(0, begin="complain")})[0].error
        assert error is not None
        assert "ValueError: xxx" in error.text
        assert "characters left out" in error.text
        assert len(error.text) < 30_000
        error.text.encode()


@WORKERS
def test_an_interrupted_pool_can_be_used_on(workers: int) -> None:
    with EnvPool(Puppet, size=2, workers=workers) as pool:
        pool.reset(tasks(2))
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            pool.step({0: "sleep", 1: "sleep"})
        outcomes = pool.reset(tasks(2)) and pool.step({0: "a", 1: "b"})
        assert [outcome.observation[:5] for outcome in outcomes.values()] == ["['a']", "['b']"]


@WORKERS
def test_a_deadline_starts_when_its_environment_does(workers: int) -> None:
    """Each in its turn is in time, though all of them together take longer."""
    with EnvPool(Puppet, size=4, workers=workers, step_timeout=1.5) as pool:
        assert not any(o.error for o in pool.reset({slot: task(slot, begin="nap") for slot in range(4)}).values())
        assert not any(o.error for o in pool.step(dict.fromkeys(range(4), "nap")).values())


@WORKERS
def test_an_outcome_says_how_long_its_environment_took(workers: int) -> None:
    with EnvPool(Puppet, size=2, workers=workers) as pool:
        outcomes = [pool.reset({0: task(0, begin="nap", saving="nap")}), pool.step({0: "nap"}), pool.snapshot([0])]
        assert all(outcome[0].seconds >= 0.5 for outcome in outcomes)


@WORKERS
def test_an_environment_that_exits_does_not_end_the_pool(workers: int) -> None:
    with EnvPool(Puppet, size=2, workers=workers) as pool:
        pool.reset(tasks(2))
        outcomes = pool.step({0: "exit", 1: "a"})
        assert outcomes[0].error is not None
        assert "SystemExit: 3" in outcomes[0].error.text
        assert outcomes[1].error is None


@pytest.mark.parametrize(
    ("order", "reason", "words"),
    [
        ("crash", StopReason.ENV_ERROR, "step of env 2 in env worker 0: the worker died with exit code 3"),
        ("close files", StopReason.ENV_ERROR, "step of env 2 in env worker 0: the worker died with exit code 1"),
        ("hold the GIL", StopReason.STEP_TIMEOUT, "step of env 2 in env worker 0: no answer in 1 s; the worker"),
    ],
)
def test_an_environment_that_ends_its_worker_fails_and_the_others_continue(
    monkeypatch: pytest.MonkeyPatch, order: str, reason: StopReason, words: str
) -> None:
    """Of that worker's other slots, 0 has answered, 4 is still to be asked, and 6 is not asked at all."""
    monkeypatch.setattr(envs.pool_worker, "GRACE_SECONDS", 0.5)

    def played(order: str) -> list[dict[int, Outcome]]:
        with EnvPool(Puppet, size=7, workers=2, step_timeout=1) as pool:
            log = [pool.reset(tasks(7)), pool.step(dict.fromkeys(range(7), "a"))]
            log += [pool.step({0: "b", 1: "b", 2: order, 4: "b"}), pool.step({6: "b", 0: "c", 1: "c"})]
            state = pool.snapshot([0])[0].snapshot
            return [*log, pool.restore({4: state, 2: state}), pool.step(dict.fromkeys((0, 2, 4, 6), "d"))]

    good, bad = played("b"), played(order)
    error = bad[2].pop(2).error
    assert error is not None
    assert error.reason is reason
    assert words in error.text
    good[2].pop(2)
    assert bad == good


def test_an_environment_that_ends_the_process_later_fails_and_not_the_running_one() -> None:
    with EnvPool(Puppet, size=3, workers=1) as pool:
        pool.reset(tasks(3))
        pool.step({0: "leave a bomb", 1: "a", 2: "a"})
        outcomes = pool.step({1: "nap", 2: "b"})
        assert [outcome.error for outcome in outcomes.values()] == [None, None]
        outcomes = pool.step({2: "nap", 0: "nap", 1: "c"})
        assert [slot for slot, outcome in outcomes.items() if outcome.error] == [0]
        assert "exit code 4; no other environment was in it" in str(outcomes[0].error)
        assert outcomes[1].observation.startswith("['a', 'nap', 'c']")
        assert not any(outcome.error for outcome in pool.reset(tasks(3)).values())
        assert len({outcome.observation for outcome in pool.step(dict.fromkeys(range(3), "pid")).values()}) == 1


def test_the_end_of_a_worker_is_detected_if_a_child_keeps_its_pipe_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs.pool, "CHECK_SECONDS", 0.1)
    with EnvPool(Puppet, size=2, workers=1, step_timeout=5) as pool:
        pool.reset(tasks(2))
        outcomes = pool.step({0: "crash beside a child", 1: "a"})
        assert "the worker died with exit code 3" in str(outcomes[0].error)
        assert outcomes[1].error is None


@HERE_AND_THERE
def test_a_forked_child_of_an_environment_does_not_answer_the_pool(workers: int) -> None:
    with EnvPool(Puppet, size=2, workers=workers) as pool:
        pool.reset(tasks(2))
        for heard in (["fork"], ["fork", "b"], ["fork", "b", "c"]):
            outcomes = pool.step({0: heard[-1], 1: heard[-1]})
            assert all(outcome.observation.startswith(f"{heard} ") for outcome in outcomes.values())


def test_an_unexpected_answer_is_not_taken_for_the_result_of_a_request() -> None:
    with EnvPool(Puppet, size=1, workers=1) as pool:
        pool.reset(tasks(1))
        worker = pool._workers[0]
        before = (7).to_bytes(8, "little") + pickle.dumps(Outcome("What nobody said."))
        for stray in (before, b"", b"nonsense"):
            worker.pending = [Command(0, "step", "a")]
            results: dict[int, Outcome] = {}
            worker._receive_outcome(stray, results)
            assert results == {}
            assert len(worker.pending) == 1
        worker.pending = []
        assert pool.step({0: "a"})[0].observation.startswith("['a']")


def test_timers_and_signals_of_one_environment_reach_no_other() -> None:
    with EnvPool(Puppet, size=2, workers=1, step_timeout=3) as pool:
        pool.reset(tasks(2))
        assert pool.step({1: "signals"})[1].observation == "[False, False, False]"
        pid = pool.step({0: "pid"})[0].observation
        outcomes = pool.step({0: "leave timers", 1: "burn"})
        assert [outcome.error for outcome in outcomes.values()] == [None, None]
        assert pool.step({1: "pid"})[1].observation == pid
        pool.step({0: "take signals"})
        assert pool.step({1: "signals"})[1].observation == "[False, False, False]"
        assert pool.step({0: "signals"})[0].observation == "[True, True, True]"
        late = pool.step({1: "sleep"})[1].error
        assert late is not None
        assert "no answer in 3 s. It is in" in late.text, "its deadline interrupts it"
        assert pool.step({0: "pid"})[0].observation == pid


def test_a_worker_that_is_lost_again_and_again_loses_one_environment_each_time() -> None:
    with EnvPool(Puppet, size=4, workers=1) as pool:
        pool.reset(tasks(4))
        pool.step(dict.fromkeys(range(4), "a"))
        outcomes = pool.step({0: "crash", 1: "b", 2: "crash", 3: "b"})
        assert [slot for slot, outcome in outcomes.items() if outcome.error] == [0, 2]
        assert outcomes[3].observation.startswith("['a', 'b']")
        assert pool.step({1: "c", 3: "crash"})[1].observation.startswith("['a', 'b', 'c']")
        assert "EpisodeOverError" in str(pool.step({3: "a"})[3].error)


def test_a_worker_that_ends_while_idle_loses_no_environment() -> None:
    with EnvPool(Puppet, size=3, workers=1) as pool:
        pool.reset(tasks(3))
        state = pool.snapshot([0])[0].snapshot
        (before,) = {outcome.observation for outcome in pool.step(dict.fromkeys(range(2), "pid")).values()}
        os.kill(int(before), signal.SIGKILL)
        # Its pid is another one, and what it showed is not to be had again.
        assert all(outcome.error and outcome.error.lost for outcome in pool.step({0: "a", 1: "a"}).values())
        assert pool.step({2: "a"})[2].observation.startswith("['a']")
        assert pool.restore({0: state})[0].error is None
        assert pool.step({0: "a"})[0].observation.startswith("['a']")


def test_an_episode_that_cannot_be_replayed_ends_with_an_error() -> None:
    with EnvPool(Fickle, size=3, workers=1) as pool:
        pool.reset(tasks(3))
        pool.step({0: "a", 1: "a"})
        outcomes = pool.step({0: "crash", 1: "b", 2: "b"})
        assert outcomes[0].error is not None
        assert outcomes[0].error.lost, "alone it could not be brought back to where it ended the process"
        assert outcomes[1].error is not None
        assert outcomes[1].error.lost
        assert outcomes[1].error.reason is StopReason.ENV_ERROR
        assert "at step 1 of 1: it showed something else than the first time" in outcomes[1].error.text
        assert outcomes[2].error is None
        assert "EpisodeOverError" in str(pool.step({1: "b"})[1].error)
        assert not any(outcome.error for outcome in pool.reset({0: task(0), 1: task(1)}).values())
        pool.step({0: "a", 1: "a", 2: "a"})
        outcomes = pool.step({0: "crash", 1: "b", 2: "b"})
        assert outcomes[0].error is not None
        assert not outcomes[0].error.lost, "it was alone"
        assert (outcomes[1].error, outcomes[2].error) == (None, None)


def test_a_worker_may_end_while_it_starts(tmp_path: Path) -> None:
    file = tmp_path / "deaths"
    file.write_text("\n")
    with EnvPool(Dying(file), size=2, workers=1) as pool:
        pool.reset(tasks(2))
        pool.step({0: "a", 1: "a"})
        file.write_text("\n")
        outcomes = pool.step({0: "crash", 1: "b"})
        assert outcomes[1].observation.startswith("['a', 'b']")
        pool.reset({0: task(0)})
        pid = int(pool.step({0: "pid"})[0].observation)
        file.write_text("\n" * 3)
        os.kill(pid, signal.SIGKILL)
        outcomes = pool.step({1: "c"})
        assert outcomes[1].error is not None
        assert "start of env worker 0: the worker died with exit code 7" in outcomes[1].error.text
        assert all(outcome.error is None for outcome in pool.reset(tasks(2)).values())
    file.write_text("\n" * 3)
    with pytest.raises(RuntimeError, match="start of env worker 0: the worker died with exit code 7"):
        EnvPool(Dying(file), size=2, workers=1)


def test_results_that_cannot_be_pickled_are_an_error_of_their_environment() -> None:
    with EnvPool(Puppet, size=2, workers=1) as pool:
        outcomes = pool.reset({0: task(0, junk=lambda: 0), 1: task(1)})
        assert outcomes[0].error is not None
        assert "reset of env 0 cannot be sent to a worker" in outcomes[0].error.text
        assert outcomes[1].error is None
        pool.reset(tasks(2))
        outcomes = pool.step({0: "unsendable", 1: "a"})
        assert outcomes[0].error is not None
        assert "step of env 0 gave what cannot be sent" in outcomes[0].error.text
        assert outcomes[1].error is None


def test_unusable_arguments_are_refused_with_a_message() -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        EnvPool(lambda: Puppet(), size=2, workers=1)
    with pytest.raises(ValueError, match="size=0"):
        EnvPool(Puppet, size=0)
    with EnvPool(Puppet, size=2) as pool, pytest.raises(IndexError, match="slot 2 does not exist"):
        pool.reset(tasks(3))
    with pytest.raises(RuntimeError, match="closed"):
        pool.step({0: "a"})


@WORKERS
def test_an_environment_that_cannot_be_made_says_why(workers: int) -> None:
    with EnvPool(make_nothing, size=1, workers=workers) as pool:
        error = pool.reset({0: task(0)})[0].error
        assert error is not None
        assert "no puppets today" in error.text


def test_a_worker_that_cannot_start_raises_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "parents_own.py"
    module.write_text("def make(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    import parents_own  # type: ignore[import-not-found]

    module.unlink()
    with pytest.raises(RuntimeError, match=r"(?s)start of env worker 0: .*No module named 'parents_own'"):
        EnvPool(parents_own.make, size=1, workers=1)


@WORKERS
def test_a_failing_close_is_warned_of_and_closing_twice_is_fine(workers: int) -> None:
    pool = EnvPool(make_bad_closer, size=2, workers=workers)
    pool.reset({0: task(0)})
    with pytest.warns(RuntimeWarning, match=r"(?s)closing env 0 failed:.*a puppet's error"):
        pool.close()
    pool.close()


@PROC
def test_close_leaves_no_process() -> None:
    with EnvPool(Puppet, size=4, workers=2) as pool:
        pool.reset(tasks(4))
        pids = {int(outcome.observation) for outcome in pool.step(dict.fromkeys(range(4), "pid")).values()}
        assert len(pids) == 2
        assert os.getpid() not in pids
    assert not any(alive(pid) for pid in pids)


PARENT = """
import sys
from envs.pool import EnvPool
from tests.envs.test_pool import Puppet, tasks
if __name__ == "__main__":
    with EnvPool(Puppet, size=2, workers=int(sys.argv[1])) as pool:
        pool.reset(tasks(2))
        print(*(o.observation for o in pool.step({0: "pid", 1: "pid"}).values()), flush=True)
        pool.step({0: "sleep", 1: "sleep"})
"""


@PROC
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_parent(tmp_path: Path, workers: int, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(workers)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    time.sleep(0.3)  # let it get into the long step
    parent.send_signal(how)
    _, words = parent.communicate(timeout=30)
    assert parent.returncode != 0
    assert gone(pids)
    if how is signal.SIGINT:
        assert words.rstrip().endswith("KeyboardInterrupt")
