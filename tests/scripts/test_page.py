"""The page of runs: its data, its server, and how it behaves in a browser (with a Chromium on the machine)."""

from __future__ import annotations

import gzip
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from agents.episode import Episode, ParseStatus, Turn, write_episodes
from agents.record import Record, write_record
from algorithms.estimators.gigpo import gigpo
from algorithms.estimators.steps import explained
from algorithms.recorded import recorded_batch
from algorithms.signals.base import RolloutBatch
from algorithms.turn_table import TurnTable
from envs.core import StopReason, Task, UnknownNameError
from scripts import view
from scripts.page.collect import collect
from scripts.page.server import server_of
from tests.scripts.browser import CHROMIUM, Browser, browser

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> ]]> {{DATA}} \u2028 &lt;"


def attempt(task: str, group: int, actions: str, *, success: bool = False) -> Episode:
    turns = [
        Turn(f"room {n} {HOSTILE}", action, 0.0, f"state {min(n, 1)}", ParseStatus.OK, [1], [5, 6], [-0.5, -1.5])
        for n, action in enumerate(actions)
    ]
    turns[-1].reward = float(success)
    reason = StopReason.SUCCESS if success else StopReason.TURN_LIMIT
    return Episode(
        Task(task, "toy", "train"), group, turns, "the end", f"goal {HOSTILE}", reason, float(success), success
    )


def batch() -> list[Episode]:
    """Two tasks with two attempts each, of which one succeeds."""
    first = [attempt("task a", 0, "lr", success=True), attempt("task a", 0, "lll")]
    return [*first, attempt(f"task b {HOSTILE}", 1, "rr"), attempt(f"task b {HOSTILE}", 1, "rl")]


def make_run(folder: Path, seed: int, algo: str = "gigpo") -> Path:
    """The folder of a training run with a recorded batch and an evaluation."""
    (folder / ".hydra").mkdir(parents=True)
    hydra = {"hydra": {"runtime": {"choices": {"env": "toy", "algo": algo}}}}
    (folder / ".hydra/hydra.yaml").write_text(json.dumps(hydra))
    (folder / ".hydra/config.yaml").write_text(
        json.dumps({"seed": seed, "trainer": {"updates": 2}, "algo": {"name": algo}})
    )
    lines = [{"update": u, "rollout/success": 0.25 * u + 0.1 * seed, "train/loss": -0.1 * u} for u in (1, 2)]
    lines.append({"update": 2, "eval/toy/valid/success": 0.5, "eval/toy/valid/success_low": 0.2})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    episodes = batch()
    table = TurnTable.from_episodes(episodes)
    with explained() as steps:
        advantages = gigpo(table, mode="mean_norm")
    record = recorded_batch(2, "train", RolloutBatch(episodes, table, []), advantages, steps, {})
    write_record(folder / "episodes/update-000002.jsonl.gz", record)
    evaluated = [attempt("v1", 0, "lr", success=seed == 0), attempt("v2", 1, "ll", success=True), attempt("v3", 2, "r")]
    write_record(folder / "evaluations/update-000002.valid.jsonl.gz", Record(evaluated, split="valid", update=2))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "one", 0)
    make_run(folder / "two", 1)
    make_run(folder / "three", 0, "grpo")
    return folder


# -- data -------------------------------------------------------------------------------------------------------------
def test_the_page_has_runs_groups_over_seeds_and_what_differs(runs: Path) -> None:
    data = collect([runs])
    assert data["gaps"] == [
        f"{runs / name}: it has no tokenizer, so tokens are shown as numbers" for name in ("one", "three", "two")
    ]
    assert [len(group["runs"]) for group in data["groups"]] == [2, 1]
    assert data["differences"].keys() == {"algo", "algo.name"}
    assert data["runs"][0]["metrics"]["rollout/success"] == [[1, 2], [0.25, 0.5]]
    assert len(data["episodes"]) == 3 * 7
    assert data["records"][0]["steps"][-1]["name"] == "advantage"
    assert len(collect([runs], most=5)["episodes"]) == 5
    assert any("left out (--most 5)" in gap for gap in collect([runs], most=5)["gaps"])


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 3, "train/loss": NaN}\n{"update": 4, "rollo')
    (run / "episodes/update-000001.jsonl.gz").write_bytes(b"\x1f\x8b broken")
    newer = gzip.compress(b'{"record": 9, "update": 3, "split": "train", "kind": "training", "steps": []}\n')
    (run / "episodes/update-000003.jsonl.gz").write_bytes(newer)
    old = tmp_path / "old"  # of a version that wrote no columns, without settings, while it is being written
    (old / "episodes").mkdir(parents=True)
    (old / "metrics.jsonl").write_text("")
    write_episodes(old / "episodes/update-000001.jsonl", batch())
    with (old / "episodes/update-000001.jsonl").open("a") as file:
        file.write('{"task": {"id"')
    data = collect([run, old, tmp_path / "nothing"])
    gaps = "\n".join(data["gaps"])
    assert "1 value of train/loss is not a finite number" in gaps
    assert "update-000001.jsonl.gz is damaged" in gaps
    assert "a record of version 9, and this polyturn reads version 1" in gaps
    assert "its settings cannot be shown" in gaps
    assert "its last line is not complete" in gaps
    assert "nothing does not exist" in gaps
    assert len(data["episodes"]) == 7 + 4


def test_view_writes_the_page_and_chooses_in_the_terminal(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = str(runs / "one")
    view.main([run, "--html", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "1 run, 7 episodes" in " ".join(capsys.readouterr().out.split())
    assert page.count("<script>") == 1
    assert "hacked" not in page
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page
    view.main([run])
    assert "4 of 4 episodes" in capsys.readouterr().out
    view.main([run, "--split", "valid", "--failed"])
    assert "1 of 3 episodes, 0 solved" in capsys.readouterr().out
    view.main([run, "--update", "2", "--group", "0"])
    out = capsys.readouterr().out
    assert "#0" in out
    assert "#1" in out
    assert "(1) l" in out
    with pytest.raises(ValueError, match="has no episodes of update=7; it has: train after 2, valid after 2"):
        view.main([run, "--update", "7"])
    with pytest.raises(UnknownNameError, match="unknown group"):
        view.main([run, "--group", "5"])
    with pytest.raises(ValueError, match="the terminal shows one run, got 2"):
        view.main([run, run])


def test_the_server_answers_this_machine_with_new_data(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    with server_of(partial(collect, [run]), [run], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}"

        def get(path: str, host: str | None = None) -> tuple[int, str, str]:
            request = urllib.request.Request(home + path, headers={"Host": host} if host else {})
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.status, answer.read().decode(), answer.headers["ETag"]
            except urllib.error.HTTPError as error:
                return error.code, "", ""

        status, page, stamp = get("/")
        assert status == 200
        assert f'data-stamp="{stamp}"' in page
        assert "connect-src 'self'" in page
        assert get(f"/data?have={stamp}")[:2] == (204, "")
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"update": 3, "rollout/success": 1.0}\n')
        status, packed, newer = get(f"/data?have={stamp}")
        assert status == 200
        assert newer != stamp
        assert packed
        assert get("/../one")[0] == 404
        assert get("/", host="elsewhere.example:80")[0] == 403
        server.shutdown()


# -- in a browser -----------------------------------------------------------------------------------------------------
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def page(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("page")
    view.main([str(runs), "--html", str(folder / "page.html")])
    with browser(folder / "profile") as tab:
        tab.open((folder / "page.html").as_uri())
        yield tab


def show(page: Browser, view: str) -> None:
    page.run(f"location.hash = {json.dumps(view)}; new Promise(done => setTimeout(done, 50))")


@needs_chromium
def test_a_click_explains_an_advantage(page: Browser, runs: Path) -> None:
    data = collect([runs])
    number = next(n for n, e in enumerate(data["episodes"]) if e["ofTurns"] and e["turns"][0]["adv"] > 0)
    show(page, f"#episode/{number}")
    page.run("document.querySelector('#turn-1 .token').click()")
    steps = page.run("[...document.querySelectorAll('.explain li')].map(li => li.textContent)")
    names = [step["name"] for step in data["records"][data["episodes"][number]["record"]]["steps"]]
    assert [step.partition(" ")[0] for step in steps] == names
    assert "of_episode + step_weight * of_step" in steps[-1]
    shown = page.run("document.querySelector('.explain li:last-child output').textContent")
    assert float(shown) == pytest.approx(data["episodes"][number]["turns"][0]["adv"], rel=1e-4)
    members = page.run("[...document.querySelectorAll('.explain summary')].map(one => one.textContent)")
    assert "5 turns of the attempts at the task" in members
    page.run("document.querySelector('.explain .close').click()")
    assert page.run("document.querySelectorAll('.explain').length") == 0


@needs_chromium
def test_filters_filter_and_keys_move(page: Browser) -> None:
    show(page, "#episodes")
    assert "21 episodes of 21" in page.run("document.getElementById('count').textContent")
    choose = (
        "{{ const fields = [...document.querySelectorAll('.field')];"
        " const select = fields.find((f) => f.textContent.startsWith('{}')).querySelector('select');"
        " select.value = '{}'; select.dispatchEvent(new Event('change')); }}"
    )
    for name, value in (("kind", "evaluation"), ("solved", "yes")):
        page.run(choose.format(name, value))
        page.run("new Promise((done) => setTimeout(done, 50))")
    assert "5 episodes of 21, 100.0 % solved" in page.run("document.getElementById('count').textContent")
    rows = page.run("[...document.querySelectorAll('tr.row')].map(row => Number(row.dataset.episode))")
    assert len(rows) == 5
    show(page, f"#episode/{rows[0]}")
    press = (
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '%s', bubbles: true}));"
        " new Promise((done) => setTimeout(done, 50))"
    )
    page.run(press % "ArrowRight")
    assert page.run("location.hash") == f"#episode/{rows[1]}"
    page.run(press % "Escape")
    assert page.run("location.hash").startswith("#episodes?")


@needs_chromium
def test_a_page_that_is_served_shows_what_a_run_adds(page: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    before, shown = page.run("location.href.split('#')[0]"), "document.getElementById('main').textContent"
    with server_of(partial(collect, [run]), [run], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.open(f"http://127.0.0.1:{server.server_port}/")
        assert "50.0 %" in page.run(shown)
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"update": 3, "rollout/success": 0.75}\n')
        page.until(f"{shown}.includes('75.0 %')")
        assert page.console == []
        page.open(before)
        server.shutdown()


@needs_chromium
def test_every_view_is_shown_hostile_text_stays_text_and_the_console_is_empty(page: Browser) -> None:
    for at, text in {
        "#runs": "Settings that differ",
        "#episodes": "of 21",
        "#episode/0": "Turn 1",
        "#group/0/0": "first difference",
        "#group/0/0?show=tree": "of 2 solved",
        "#pair": "B does not",
        "#board": "no leaderboard.json",
        "#else": "No such view",
    }.items():
        show(page, at)
        assert text in page.run("document.getElementById('main').textContent"), at
        assert page.run("document.querySelectorAll('main :is(script, img, iframe)').length") == 0
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), at
    show(page, "#episode/0")
    assert "<script>window.hacked = 1</script>" in page.run("document.getElementById('main').textContent")
    show(page, "#runs")
    page.until("document.querySelectorAll('.chart canvas').length >= 3")
    assert page.run("window.hacked") is None
    assert page.console == []
