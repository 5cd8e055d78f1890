"""The commands around training, as a user calls them."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from transformers.utils.logging import disable_progress_bar

from agents.episode import Episode, Turn, read_episodes, write_episodes
from algorithms.checkpoint import checkpoint_folder, save_checkpoint
from envs.core import Info, StopReason, Task
from envs.pool_env import error_line
from scripts import common, doctor
from scripts.agents import checkpoint_of
from scripts.play import find_task
from tests.agents.corridors import ACTIONS, Corridor, Corridors
from tests.agents.endpoint_server import Server, answered
from tests.agents.test_chat import CHATML
from tests.agents.toys import random_policy

ROOT = Path(__file__).parents[2]
CORRIDOR = ["--config-dir", str(Path(__file__).parent / "conf"), "env=corridor", "split=valid"]


class Cli:
    """Runs commands in this process, in an empty folder. Pictures are most of the work of a small run."""

    def __init__(
        self,
        folder: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        *,
        pictures: bool = False,
    ) -> None:
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch
        monkeypatch.chdir(folder)
        # Hydra would compose the configuration twice, the first time only to read `hydra.mode`, which none here sets.
        monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        if not pictures:
            monkeypatch.setattr("scripts.train.draw_pictures", lambda *_, **__: None)
            monkeypatch.setattr("scripts.evaluate.chart", lambda *_, **__: b"")

    def __call__(self, name: str, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `python -m scripts.<name> <arguments>`."""
        self.monkeypatch.setattr(sys, "argv", [name, *arguments])
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = 0
        try:
            common.run(importlib.import_module(f"scripts.{name}").main)
        except SystemExit as end:
            code = int(end.code or 0)
        output = self.capsys.readouterr()
        return code, output.out, output.err

    def evaluate(self, *arguments: str) -> Path:
        """The run folder of an evaluation that must succeed."""
        run = self.folder / f"run{len(list(self.folder.iterdir()))}"
        code, _, err = self("evaluate", *CORRIDOR, *arguments, f"hydra.run.dir={run}")
        assert (code, err) == (0, "")
        return run


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(tmp_path, capsys, monkeypatch)


def a_policy(folder: Path) -> Path:
    """The folder of a small random policy."""
    disable_progress_bar()
    policy = random_policy()
    save_checkpoint(checkpoint_folder(folder, 0), policy.model, policy.tokenizer, {"best": None})
    return folder


def result_of(run: Path) -> dict:
    return json.loads((run / "evaluation.json").read_text())["evaluation"]


# -- evaluate ---------------------------------------------------------------------------------------------------------
def test_an_evaluation_writes_episodes_facts_table_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = Cli(tmp_path, capsys, monkeypatch, pictures=True)
    run = cli.evaluate("agent=expert", "seeds=[0,1]")
    assert len(list(read_episodes(run / "episodes.jsonl"))) == 12
    facts = json.loads((run / "run.json").read_text())
    assert facts["manifest_sha256"] == Corridors().manifest("valid").content_hash
    assert facts["versions"]["torch"] == metadata.version("torch")
    assert result_of(run)["success"]["successes"] == 12
    assert "| **all** | 100.0% |" in (run / "evaluation.md").read_text()
    assert (run / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert not list(run.glob(".*partial"))


def test_resume_cuts_a_half_written_line_and_plays_what_is_missing(cli: Cli) -> None:
    whole = cli.evaluate("agent=random", "seeds=[0,1]")
    cut = cli.evaluate("agent=random", "seeds=[0,1]")
    lines = (cut / "episodes.jsonl").read_text().splitlines(keepends=True)
    (cut / "episodes.jsonl").write_text("".join(lines[:5]) + lines[5][:40])
    (cut / "evaluation.json").unlink()
    code, out, _ = cli("evaluate", f"resume={cut}")  # split and seeds come from the run
    assert (code, "5 of 12 episodes were played before" in out) == (0, True)
    assert (cut / "episodes.jsonl").read_text().splitlines(keepends=True)[:5] == lines[:5]
    assert result_of(cut) == result_of(whole)


def test_time_and_tokens_of_an_evaluation_are_summed_over_its_starts(cli: Cli) -> None:
    run = cli.evaluate(f"model={a_policy(cli.folder / 'policy')}", "limit=2")
    first = json.loads((run / "evaluation.json").read_text())
    usage = first["usage"]
    assert usage["completion_tokens"] == first["sampled_tokens"] > 0
    assert usage["prompt_tokens"] > usage["requests"] > 0
    assert usage["seconds"] > 0
    assert f"{usage['prompt_tokens']:,} prompt tokens" in (run / "evaluation.md").read_text()
    with (run / "usage.jsonl").open("a") as file:
        file.write('{"start": 2, "sec')  # as a kill leaves it
    assert cli("evaluate", f"resume={run}", "seeds=[0,1]")[0] == 0
    second = json.loads((run / "evaluation.json").read_text())
    assert second["usage"]["starts"] == 2
    assert second["usage"]["completion_tokens"] == second["sampled_tokens"] > first["sampled_tokens"]
    assert second["seeds"] == [0, 1]
    assert {len(task["success"]) for task in second["tasks"].values()} == {2}


def test_a_seed_that_is_added_draws_other_numbers(cli: Cli) -> None:
    run = cli.evaluate(f"model={a_policy(cli.folder / 'policy')}", "agent.sampling.temperature=1", "max_turns=3")
    assert cli("evaluate", f"resume={run}", "seeds=[0,1]")[0] == 0
    attempts: dict[int, list] = {0: [], 1: []}
    for episode in sorted(read_episodes(run / "episodes.jsonl"), key=lambda e: e.task.id):
        attempts[episode.seed].append([turn.completion_ids for turn in episode.turns])
    assert attempts[0] != attempts[1]


def test_resume_may_add_seeds_but_not_change_the_agent(cli: Cli) -> None:
    run = cli.evaluate("agent=random")
    code, _, err = cli("evaluate", f"resume={run}", "agent=expert")
    assert (code, f"{run} has agent=random, and a run keeps its settings" in err) == (2, True), err
    assert cli("evaluate", f"resume={run}", "seeds=[0,1]")[0] == 0
    assert set(result_of(run)["by_seed"]) == {"0", "1"}


def test_resume_refuses_another_environment(cli: Cli) -> None:
    """And says which of its settings is another one; how much is played, and how, may change."""
    corridor = ["env=key_corridor", "env.valid_tasks=2", "agent=random", "hydra.run.dir=run"]
    assert cli("evaluate", *corridor)[0] == 0
    before = (cli.folder / "run" / "episodes.jsonl").read_bytes()
    for override, change in {
        "env.max_turns=7": "environment.max_turns was 30 and is 7",
        "env.rooms=9": "environment.rooms was 8 and is 9",
        "env.train_tasks=5": "environment.train_tasks was 1000 and is 5",
        "split=train": "split was 'valid' and is 'train'",
        "max_turns=3": "max_turns was 30 and is 3",
        "policy.dtype=float32": "config.policy.dtype was 'auto' and is 'float32'",
    }.items():
        code, _, err = cli("evaluate", "resume=run", override)
        assert (code, change in err) == (2, True), err
    assert (cli.folder / "run" / "episodes.jsonl").read_bytes() == before
    assert cli("evaluate", "resume=run", "pool.size=1", "seeds=[0,1]", "limit=1")[0] == 0


def test_resume_names_the_choice_of_a_group_that_a_run_keeps(cli: Cli) -> None:
    """Also where the run's own settings would be unknown keys of the other option, and for the run's defaults."""
    corridor = ["env=key_corridor", "env.valid_tasks=2", "agent=random", "hydra.run.dir=run"]
    assert cli("evaluate", *corridor)[0] == 0
    for override, kept in {
        "env=tools": "env=key_corridor", "policy=tiny": "policy=hf", "rollout=vllm": "rollout=local",
    }.items():  # fmt: skip
        code, out, err = cli("evaluate", "resume=run", override)
        assert (code, out) == (2, "")
        assert f"has {kept}, and a run keeps its settings: it cannot be resumed with {override}" in err
        assert "Only seeds, limit, pool may change" in err
    assert cli("evaluate", "resume=run", "env=key_corridor", "agent=random")[0] == 0
    several = ["env.rooms=9", "env.loops=2", "env.valid_tasks=7", "env.max_turns=9", "split=train", "max_turns=3"]
    code, _, err = cli("evaluate", "resume=run", *several)
    assert (code, "environment.rooms was 8 and is 9" in err) == (2, True), err
    assert re.search(r"; and \d+ more$", err.rstrip()), err


def test_resume_refuses_another_prompt(cli: Cli) -> None:
    """Settings of the endpoint may change when an evaluation is resumed. Its key is stored nowhere."""
    server = Server(lambda _: answered("<action>go right</action>"))
    cli.monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    endpoint = [*CORRIDOR, "agent=openai", f"agent.base_url={server.url}", "agent.name=m", "agent.prompter.system=gym"]
    assert cli("evaluate", *endpoint, "limit=1", "hydra.run.dir=run")[0] == 0
    for override, change in {
        "agent.prompter.admissible=false": "config.agent.prompter.admissible was True and is False",
        "agent.prompter.system=alfworld": "config.agent.prompter.system was 'gym' and is 'alfworld'",
        "agent.sampling.temperature=1": "config.agent.sampling.temperature was 0.0 and is 1",
    }.items():
        code, _, err = cli("evaluate", "resume=run", override)
        assert (code, change in err) == (2, True), err
    cli.monkeypatch.setattr("scripts.evaluate.agents_hash", lambda: "another template")
    assert "agents_code was" in cli("evaluate", "resume=run")[2]
    cli.monkeypatch.undo()
    cli.monkeypatch.chdir(cli.folder)
    cli.monkeypatch.setenv("OPENAI_API_KEY", "secret-2")
    assert cli("evaluate", "resume=run", "agent.concurrency=1", "agent.max_retries=0", "agent.timeout=9")[0] == 0
    server.close()
    assert "secret" not in "".join(path.read_text() for path in (cli.folder / "run").glob("*.json"))


def test_resume_refuses_a_model_with_other_content(cli: Cli) -> None:
    for seed, name in enumerate(["model", "other"]):
        policy = random_policy(seed=seed)
        policy.model.save_pretrained(name)
        policy.tokenizer.save_pretrained(name)
    cli.capsys.readouterr()
    run = cli.evaluate("model=model", "limit=1")
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        path = cli.folder / "model" / file
        before = path.read_bytes()
        path.write_bytes((cli.folder / "other" / file).read_bytes() if file.startswith("model") else before + b"\n")
        code, _, err = cli("evaluate", f"resume={run}")
        assert (code, f"model.base.{file} was" in err) == (2, True), err
        path.write_bytes(before)
    assert cli("evaluate", f"resume={run}")[0] == 0


def test_a_report_names_the_games_and_settings(cli: Cli) -> None:
    shop = ["env=webshop", "env.catalogue=embedded", "env.embedded_products=60", "env.observation=text_rich"]
    cli.monkeypatch.setenv("POLYTURN_CACHE", str(cli.folder / "cache"))
    code, out, err = cli("evaluate", *shop, "agent=random", "limit=1", "hydra.run.dir=run")
    assert (code, err) == (0, "")
    for text in (out, (cli.folder / "run" / "evaluation.md").read_text()):
        for part in ("60 generated products", "protocol official", "observations as text_rich", "manifest "):
            assert part in text
    played = json.loads((cli.folder / "run" / "evaluation.json").read_text())["run"]["environment"]
    assert (played["catalogue"], played["observation"], played["protocol"]) == ("embedded", "text_rich", "official")


def test_a_limit_is_in_the_results(cli: Cli) -> None:
    run = cli.evaluate("agent=expert", "limit=2")
    assert "2 of 6 tasks, evenly spaced over the sorted ids" in (run / "evaluation.md").read_text()
    assert result_of(run)["tasks"] == 2
    code, out, _ = cli("evaluate", f"resume={run}", "limit=4")
    assert (code, "2 of 4 episodes were played before" in out, "limit=4: 4 of 6 tasks" in out) == (0, True, True)


def test_a_sweep_runs_over_agents_and_seeds(cli: Cli) -> None:
    arguments = [*CORRIDOR, "-m", "agent=expert,random", "seeds=[0],[1]", "hydra.sweep.dir=sweep"]
    code, _, _ = cli("evaluate", *arguments)
    assert code == 0
    rates = [result_of(cli.folder / "sweep" / str(job))["success"]["rate"] for job in range(4)]
    assert rates[:2] == [1.0, 1.0]
    assert max(rates[2:]) < 1.0


def test_a_failing_job_of_a_sweep_does_not_stop_the_others(cli: Cli) -> None:
    code, _, err = cli("evaluate", *CORRIDOR, "-m", "agent=transcript,expert", "hydra.sweep.dir=sweep")
    assert (code, "needs a model" in err) == (2, True)
    assert result_of(cli.folder / "sweep" / "1")["success"]["rate"] == 1.0


def test_a_model_behind_an_endpoint_is_evaluated_and_its_tokens_are_printed(cli: Cli) -> None:
    server = Server(lambda _: answered("I go.\\n<action>go right</action>"))
    endpoint = ["agent=openai", f"agent.base_url={server.url}", "agent.prompter.system=gym", "limit=2"]
    code, out, _ = cli("evaluate", *CORRIDOR, *endpoint, "agent.name=m", "agent.prices=[1,2]")
    assert (code, "16 requests, 1,600 prompt tokens, 112 completion tokens, cost 0.001824" in out) == (0, True)
    parameters = "agent.parameters={seed: 7, max_tokens: null, chat_template_kwargs: {enable_thinking: false}}"
    assert cli("evaluate", *CORRIDOR, *endpoint, "agent.name=m", parameters)[0] == 0
    sent = server.asked[-1]
    assert (sent["seed"], sent["chat_template_kwargs"]) == (7, {"enable_thinking": False})
    assert "max_tokens" not in sent
    code, _, err = cli("evaluate", *CORRIDOR, *endpoint, "agent.name=m", "agent.parameters={stream: true}")
    assert (code, "parameters cannot set stream" in err) == (2, True), err
    code, _, err = cli("evaluate", *CORRIDOR, *endpoint)
    assert (code, "agent.name has no value" in err) == (2, True)
    server.close()
    code, _, err = cli("evaluate", *CORRIDOR, *endpoint, "agent.name=m", "agent.max_retries=0", "agent.timeout=1")
    assert (code, "APIConnectionError" in err, "Traceback" in err) == (2, True, False)


def test_an_instruction_tuned_model_is_played_through_its_chat_template(cli: Cli) -> None:
    policy = random_policy(context=4096)
    for name, template in (("tuned", CHATML), ("plain", None)):
        policy.tokenizer.chat_template = template
        save_checkpoint(cli.folder / name, policy.model, policy.tokenizer)
    cli.capsys.readouterr()
    arguments = ["agent=chat", "agent.prompter.system=gym", "agent.sampling.max_tokens=32", "limit=1"]
    run = cli.evaluate(*arguments, f"model={cli.folder / 'tuned'}")
    (episode,) = read_episodes(run / "episodes.jsonl")
    assert all(turn.completion_ids for turn in episode.turns)
    assert len(episode.turns) == Corridors.max_turns
    code, _, err = cli("evaluate", *CORRIDOR, *arguments, f"model={cli.folder / 'plain'}")
    assert (code, "has no chat template" in err, "Traceback" in err) == (2, True, False)


def test_a_model_chooses_among_the_admissible_actions(cli: Cli) -> None:
    policy = random_policy()
    save_checkpoint(cli.folder / "model", policy.model, policy.tokenizer)
    cli.capsys.readouterr()
    chosen = ["agent=candidates", f"model={cli.folder / 'model'}", "limit=2"]
    run = cli.evaluate(*chosen)
    turns = [turn for episode in read_episodes(run / "episodes.jsonl") for turn in episode.turns]
    assert {turn.status for turn in turns} == {"ok"}
    assert all(turn.action in ACTIONS and len(turn.logprobs) == 1 for turn in turns)
    same = cli.evaluate("agent=transcript", "agent/player=candidates", *chosen[1:])
    assert result_of(same) == result_of(run)
    silent = ["env=gym", "env.id=tests.envs.test_gym_tasks:Script-v0", "split=valid"]
    code, _, err = cli("evaluate", *silent, *chosen)
    assert (code, "agent.player needs admissible actions" in err, "Traceback" in err) == (2, True, False), err


def test_a_policy_is_played_from_the_best_checkpoint_of_a_run(cli: Cli) -> None:
    policy, trained = random_policy(), cli.folder / "trained"
    for update in (0, 2, 4):
        state = {"best": [0.5, 2]}
        save_checkpoint(checkpoint_folder(trained, update), policy.model, policy.tokenizer, state)
    assert checkpoint_of(str(trained)) == str(checkpoint_folder(trained, 2))
    cli.capsys.readouterr()
    run = cli.evaluate(f"model={trained}", "agent.sampling.temperature=0")
    facts = json.loads((run / "run.json").read_text())
    assert facts["model"]["name"] == str(checkpoint_folder(trained, 2).resolve())
    assert len(facts["model"]["base"]["model.safetensors"]) == 64
    assert next(read_episodes(run / "episodes.jsonl")).turns[0].completion_ids
    again = cli.evaluate(f"model={trained}", "agent.sampling.temperature=0", "pool.size=1")
    assert result_of(again) == result_of(run)


def test_a_model_that_was_trained_with_another_prompter_is_refused(cli: Cli) -> None:
    config = cli.folder / "trained" / ".hydra" / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("agent: {prompter: {_target_: agents.prompts.Template, name: gigpo_alfworld, history: 2}}")
    code, _, err = cli("evaluate", *CORRIDOR, "model=trained")
    assert (code, "trained was trained with another prompter: agent.prompter._target_ was" in err) == (2, True)


def test_a_model_of_another_environment_or_player_is_played_with_a_warning(cli: Cli) -> None:
    policy, trained = random_policy(), cli.folder / "trained"
    save_checkpoint(checkpoint_folder(trained, 0), policy.model, policy.tokenizer, {"best": None})
    (trained / ".hydra").mkdir()
    (trained / ".hydra" / "config.yaml").write_text(
        "env: {_target_: envs.search.tasks.SearchTasks}\n"
        "agent: {prompter: {_target_: agents.prompts.Transcript}, player: {_target_: agents.masking.MaskedAgent}}"
    )
    code, _, err = cli("evaluate", *CORRIDOR, "agent=transcript", "model=trained", "limit=1")
    assert code == 0, err
    for what in ("env=envs.search.tasks.SearchTasks", "agent.player=agents.masking.MaskedAgent"):
        assert f"warning: trained was trained with {what}" in err


def test_an_evaluation_whose_environment_raises_does_not_end_with_0(cli: Cli) -> None:
    """Its results are written all the same."""
    begin = Corridor._begin

    def closed(rooms: int) -> Callable[..., tuple[str, Info]]:
        def begin_or_raise(env: Corridor, task: Task, seed: int | None) -> tuple[str, Info]:
            if task.payload["length"] <= rooms:
                raise RuntimeError("the corridor is closed today")
            return begin(env, task, seed)

        return begin_or_raise

    for rooms, broken in ((2, False), (3, True), (4, True)):  # a third of the tasks for each length
        cli.monkeypatch.setattr(Corridor, "_begin", closed(rooms))
        run = cli.folder / f"closed{rooms}"
        code, _, err = cli("evaluate", *CORRIDOR, "agent=expert", f"hydra.run.dir={run}")
        assert (code, "errors of the environment ended" in err) == ((2, True) if broken else (0, False)), err
        assert result_of(run)["stops"]["env_error"] == 2 * (rooms - 1)
        assert (run / "evaluation.md").exists()


def test_an_error_of_an_environment_is_shown_by_its_message(cli: Cli) -> None:
    def raised(error: Exception) -> str:
        try:
            try:
                raise KeyError("lamp")
            except KeyError as inner:
                raise error from inner
        except Exception:
            return traceback.format_exc()

    late = "step of env 3: no answer in 2 s. It is in\n" + "".join(traceback.format_stack())
    assert error_line(late) == "step of env 3: no answer in 2 s."
    assert error_line(raised(ValueError("no such door\nas 7"))) == "ValueError: no such door"
    closed = f"{raised(OSError('gone'))}and closing it failed too:\n{raised(ValueError('closed'))}"
    assert error_line(closed) == "OSError: gone"
    assert error_line("the worker died with exit code 3") == "the worker died with exit code 3"
    cli.monkeypatch.setattr(Corridor, "_act", lambda *_: time.sleep(0.5))
    _, out, _ = cli("evaluate", *CORRIDOR, "agent=expert", "limit=1", "pool.step_timeout=0.1")
    assert "errors ended 1 episode; the first was: step of env 0: no answer in 0.1 s.\n" in out


def test_a_warning_is_a_line_without_a_date(cli: Cli) -> None:
    begin = Corridor._begin

    def warn_and_begin(env: Corridor, task: Task, seed: int | None) -> tuple[str, Info]:
        logging.getLogger("envs.any").warning("the door sticks")
        return begin(env, task, seed)

    cli.monkeypatch.setattr(Corridor, "_begin", warn_and_begin)
    code, out, err = cli("evaluate", *CORRIDOR, "agent=expert", "limit=1")
    assert (code, err) == (0, "warning: the door sticks\n")
    assert "HYDRA" not in out


# -- errors -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["env=coridor"], "unknown env 'coridor'; did you mean 'corridor' or 'key_corridor'?"),
        (["agnt=random"], "unknown key 'agnt'; did you mean 'agent'?"),
        (["pool.sise=3"], "unknown key of pool 'sise'; did you mean 'size'?; known: size, step_timeout, workers"),
        (["env=webshop", "env.catalog=small", "pool.sise=3"], "key of env 'catalog'; did you mean 'catalogue'?"),
        (["temperature=0"], "the same name exists in agent.sampling.temperature"),
        (["hydra.run.dr=x"], "unknown key of hydra.run 'dr'; did you mean 'dir'?"),
        (["env=gym", "agent=random"], "env.id has no value; set it: env.id=…"),
        (["agent=random", "seeds=3"], "got 3; did you mean seeds=[3]?"),
        (["agent=random", "model=x"], "agent=random takes no model"),
        (["model=nowhere"], "no model at nowhere"),
        (["model=outputs/nowhere"], "no model at outputs/nowhere"),
        (["seeds=[0"], "cannot read the override 'seeds=[0'"),
        (["agent=random,expert"], "add --multirun"),
        (["env=gym", "env.id=x", "env.kwargs.kind=y"], "env.kwargs 'kind'; known: none; to add it: +env.kwargs.kind=…"),
        (["env=gym", "env.id=x", "env.kwargs={kind: y}"], "add each by itself: '+env.kwargs.NAME=VALUE'"),
        (["agent=random", "+env.rooms=3"], "unknown setting of env 'rooms'; known: none"),
        (["resume=nowhere"], "nothing to resume in nowhere"),
        (["=3"], "cannot read '=3': expected KEY=VALUE"),
        (["split=a(b"], "needs quotes"),
        (["hydra.run.dir="], "hydra.run.dir must be a folder, got an empty text"),
        (["hydra.run.dir=null"], "hydra.run.dir' is not Optional"),
        (["agent=random", "hydra.run.dir=file"], "file is not a folder"),
        (["-m", "resume=nowhere"], "resumes one run, so it cannot be used with --multirun"),
    ],
)
def test_a_mistake_is_one_line_that_names_what_exists(cli: Cli, arguments: list[str], message: str) -> None:
    (cli.folder / "file").touch()
    code, _, err = cli("evaluate", *CORRIDOR[:2], *([] if "env=" in arguments[0] else CORRIDOR[2:]), *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff: [", "can't decode byte 0xff"), (b"a: b: c", "mapping values are not allowed"), (b"a: *b", "alias 'b'"),
        (b"a: 1\na: 2", "duplicate key a"), (b"a: ${", "damaged"), (b"null: 3", "damaged"),
    ],
)  # fmt: skip
def test_a_damaged_configuration_file_is_named(cli: Cli, content: bytes, message: str) -> None:
    file = cli.folder / "c" / "env" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    code, _, err = cli("evaluate", "--config-dir=c", "env=mine", "agent=random")
    assert (code, err.count("\n"), str(file) in err, message in err) == (2, 1, True, True), err


@pytest.mark.filterwarnings("error")
def test_overrides_are_stored_as_they_were_written(cli: Cli) -> None:
    """What `${oc.env:…}` stands for may be a secret. A key that does not exist leaves no folder."""
    cli.monkeypatch.setenv("SPLIT", "train")
    run = cli.evaluate("agent=random", "split=${oc.env:SPLIT}", "limit=1")
    assert "split=${oc.env:SPLIT}" in json.loads((run / "command.json").read_text())["overrides"]
    assert "split=${oc.env:SPLIT}" in (run / ".hydra" / "overrides.yaml").read_text()
    assert cli("evaluate", f"resume={run}")[0] == 0
    code, _, err = cli("evaluate", *CORRIDOR, "agent=random", "max_turns=${nothing}")
    assert (code, "Interpolation key 'nothing' not found" in err, err.count("\n")) == (2, True, 1), err
    assert not (cli.folder / "outputs").exists()


def test_bugs_have_a_traceback_and_mistakes_only_with_full_errors(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def end_of(main: Callable[[], None]) -> tuple[int, bool]:
        with pytest.raises(SystemExit) as end:
            common.run(main)
        return int(end.value.code or 0), "Traceback" in cli.capsys.readouterr().err

    def mistake() -> None:
        find_task(Corridors(), "valid", "99")

    assert end_of(lambda: {}["no such key"]) == (1, True)
    assert end_of(lambda: int("a ValueError, but not one of ours")) == (1, True)
    assert end_of(mistake) == (2, False)
    monkeypatch.setattr(common, "FULL_ERROR", True)
    assert end_of(mistake) == (2, True)


# -- endings that the user did not choose -----------------------------------------------------------------------------
def start(name: str, *arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", f"scripts.{name}", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment(), **options}
    return subprocess.Popen(command, **options)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def start_long_evaluation(folder: Path, **options) -> subprocess.Popen:
    """An evaluation that has started to play and takes long."""
    seeds = f"seeds={list(range(90))}"
    arguments = [*CORRIDOR[:2], "env=waits", "agent=random", seeds, "hydra.run.dir=run"]
    process = start("evaluate", *arguments, cwd=folder, **options)
    deadline = time.monotonic() + 60

    def begun() -> bool:
        file = folder / "run" / "episodes.jsonl"
        return file.exists() and file.read_bytes().endswith(b"\n")

    while not begun() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_evaluation_that_is_stopped_prints_the_command_that_resumes_it(cli: Cli, number: signal.Signals) -> None:
    process = start_long_evaluation(cli.folder)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "resume with: python -m scripts.evaluate resume=run" in out
    assert "Traceback" not in err
    played = len(list(read_episodes(cli.folder / "run" / "episodes.jsonl")))
    assert played > 0
    assert cli("evaluate", "resume=run", "seeds=[0]")[0] == 0


def test_a_terminal_that_is_closed_ends_the_evaluation_cleanly(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    process = start_long_evaluation(tmp_path, stdout=slave, stdin=slave)
    os.close(slave)
    os.close(master)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGHUP, "")
    assert list(read_episodes(tmp_path / "run" / "episodes.jsonl"))


def test_a_closed_stdout_and_a_full_disk(tmp_path: Path) -> None:
    write_episodes(tmp_path / "many.jsonl", [an_episode() for _ in range(6000)])
    process = start("view", str(tmp_path / "many.jsonl"))
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert process.stderr
    assert process.stderr.read() == ""
    with open("/dev/full", "w") as full:
        process = start("bench", stdout=full)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (
        2,
        "error: the disk is full: stdout could not be written; free some space and try again\n",
    )


# -- play -------------------------------------------------------------------------------------------------------------
def test_a_user_plays_by_number_and_by_name_and_undoes_a_turn(cli: Cli) -> None:
    stdin = "?\n9\n:foo\n2\n:undo\n:undo\ngo right\nopen door 1\n"
    code, out, _ = cli("play", *CORRIDOR, "task=0", stdin=stdin)
    assert code == 0
    assert "enter a number from 1 to 3" in out
    assert out.count("> go right\n") == 2  # what was chosen by its number, and what was entered
    assert "unknown command :foo" in out
    assert "there is no turn to take back" in out
    assert "solved after 2 turns, score 1, return 1" in out
    assert list(cli.folder.iterdir()) == []


def test_a_user_enters_the_text_of_a_slot(cli: Cli) -> None:
    """What is played is shown, not the number; nothing entered plays nothing."""
    cli.monkeypatch.setenv("POLYTURN_CACHE", str(cli.folder / "cache"))
    shop = ["env=webshop", "env.catalogue=embedded", "env.embedded_products=60", "task=0"]
    code, out, _ = cli("play", *shop, stdin="1\n\n1\nred <b> shoes\n:q\n")
    assert code == 0
    assert "your query: " in out
    assert "> search[red <b> shoes]" in out
    assert "search[]" not in out
    assert "not solved (stopped) after 1 turn" in out


@pytest.mark.parametrize("stdin", ["", "2\n", ":q\n"])
def test_play_ends_with_its_input(cli: Cli, stdin: str) -> None:
    code, out, _ = cli("play", *CORRIDOR, stdin=stdin)
    assert (code, "not solved (stopped)" in out) == (0, True)


def test_play_shows_an_agent(cli: Cli) -> None:
    code, out, _ = cli("play", *CORRIDOR, "task=valid-002", "agent=expert", "delay=0")
    assert code == 0
    assert out.count("> go right") == 3
    assert "> open door 1" in out
    assert "solved after 4 turns" in out


def test_a_task_is_found_by_number_id_or_part() -> None:
    assert find_task(Corridors(), "valid", "2").id == "valid-002"
    assert find_task(Corridors(), "valid", "valid-003").id == "valid-003"
    assert find_task(Corridors(), "valid", "-004").id == "valid-004"
    with pytest.raises(ValueError, match="6 tasks of valid have 'valid' in their id"):
        find_task(Corridors(), "valid", "valid")
    with pytest.raises(LookupError, match="did you mean 'valid-002'"):
        find_task(Corridors(), "valid", "vlid-002")


# -- view -------------------------------------------------------------------------------------------------------------
def an_episode(success: bool = True, **more) -> Episode:
    turn = Turn("a [red] room\x1b[2J", "go", 0.5, "k", completion_ids=[1, 2, 3], logprobs=[-0.5] * 3, advantage=-1.25)
    reason = StopReason.SUCCESS if success else StopReason.TURN_LIMIT
    return Episode(Task("task-1", "Test-v0", "valid"), 0, [turn], "the end", "go", reason, success=success, **more)


def test_view_lists_episodes_and_shows_one(cli: Cli) -> None:
    write_episodes(cli.folder / "episodes.jsonl", [an_episode(), an_episode(False, error="Traceback: boom")])
    code, out, _ = cli("view", ".")
    assert (code, "2 of 2 episodes, 1 solved" in out) == (0, True)
    code, out, _ = cli("view", ".", "--failed")
    assert "1 of 2 episodes, 0 solved" in out
    assert "--episode 1" in out
    code, out, _ = cli("view", "episodes.jsonl", "--episode", "1")
    assert code == 0
    assert "turn 1 · reward 0.5 · 3 tokens, log-probability -1.50 · advantage -1.250" in out
    assert "a [red] room\\x1b[2J" in out
    assert "not solved (turn_limit) after 1 turn, score 0, return 0.5" in out
    assert "boom" in out
    code, _, err = cli("view", "episodes.jsonl", "--episode", "2")
    assert (code, "has episodes 0 to 1, got --episode 2" in err) == (2, True)


def test_view_takes_the_last_update_of_a_training_run(cli: Cli) -> None:
    (cli.folder / "episodes").mkdir()
    for update in (2, 12):
        write_episodes(cli.folder / "episodes" / f"update-{update:06d}.jsonl", [an_episode()] * update)
    code, out, _ = cli("view", ".")
    assert (code, "12 of 12 episodes" in out, "update-000012.jsonl" in out) == (0, True, True)


def test_view_names_what_is_missing_or_broken(cli: Cli) -> None:
    (cli.folder / "broken.jsonl").write_text("{}\n")
    assert "broken.jsonl:1: not an episode" in cli("view", "broken.jsonl")[2]
    assert "there is no nothing.jsonl" in cli("view", "nothing.jsonl")[2]
    write_episodes(cli.folder / "episodes.jsonl", [an_episode()])
    (cli.folder / "inner").mkdir()
    (cli.folder / "episodes.jsonl").rename(cli.folder / "inner" / "episodes.jsonl")
    assert "there are some in inner" in cli("view", ".")[2]


# -- bench ------------------------------------------------------------------------------------------------------------
def test_bench_names_what_exists(cli: Cli) -> None:
    assert "unknown benchmark 'nothing'" in cli("bench", "nothing")[2]
    assert cli("bench")[0] == 0


def test_an_unusable_folder_names_the_variable_that_it_comes_from(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (cli.folder / "file").write_text("")
    monkeypatch.setenv("POLYTURN_CACHE", str(cli.folder / "file"))
    code, _, err = cli("evaluate", "env=search", "agent=expert", "limit=1")
    assert (code, err.count("\n")) == (2, 1), err
    assert f"(the environment variable POLYTURN_CACHE is {cli.folder / 'file'})" in err


# -- doctor -----------------------------------------------------------------------------------------------------------
def test_doctor_reports_packages_and_data(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(cli.folder / "cache"))
    monkeypatch.setenv("POLYTURN_DATA", str(cli.folder / "data"))
    code, out, _ = cli("doctor")
    assert code == 0
    assert f"torch {metadata.version('torch')}" in out
    assert "train 0 of 3553, valid_train 0 of 200, valid_seen 0 of 140, valid_unseen 0 of 134" in out
    assert "→ python -m scripts.download alfworld" in out
    assert "embedded games: none yet" in out
    assert "vllm" in out
    assert out.count("✓ pydantic ") == 1  # which several extras require
    assert list(cli.folder.iterdir()) == []  # looking changes nothing


def test_doctor_names_splits_that_training_needs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(cli.folder / "cache"))
    monkeypatch.setenv("POLYTURN_DATA", str(cli.folder / "data"))
    game = cli.folder / "data/alfworld/json_2.1.1/valid_seen/a/b/game.tw-pddl"
    game.parent.mkdir(parents=True)
    game.touch()
    code, out, _ = cli("doctor")
    assert code == 1
    assert "without train and valid_unseen: a run would end at its start" in out
    assert "1 problem to fix" in out


def test_doctor_finds_what_stops_a_run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", "/proc/none")
    code, out, _ = cli("doctor")
    assert (code, "✗ cache: /proc cannot be written to" in out) == (1, True)
    monkeypatch.setattr(
        doctor, "_requirements", lambda: ["torch<1", "no-such-package", "nor-this; extra == 'alfworld'"]
    )
    code, out, _ = cli("doctor")
    assert code == 1
    assert f"✗ torch {metadata.version('torch')}, but <1 is needed" in out
    assert "✗ no-such-package is not installed" in out
    assert "· nor-this is not installed" in out
    assert "→ pip install" in out


def test_doctor_runs_where_nothing_is_installed() -> None:
    code = f"import sys; sys.path.append({str(ROOT)!r}); import scripts.doctor; scripts.doctor.main()"
    process = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "pip install" in process.stdout


# -- speed of starting ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("package", "install"),
    [
        ("textworld", "'polyturn[alfworld]'"), ("mpmath", "'polyturn[bfcl]'"), ("minigrid", "'polyturn[babyai]'"),
        ("textarena", "'polyturn[textarena]'"), ("openenv", "'polyturn[openenv]'"),
        ("reasoning_gym", "'polyturn[reasoning-gym]'"),
        ("sentence_transformers", "'polyturn[dense]'"), ("peft", "'polyturn[hf]'"), ("openai", "'polyturn[openai]'"),
        ("wandb", "'polyturn[loggers]'"), ("numba", "'polyturn[numba]'"), ("mcp", "'polyturn[tools]'"),
        ("pydantic_monty", "'polyturn[tools]'"), ("scienceworld", "'polyturn[scienceworld]'"),
        ("textworld_express", "'polyturn[textworld-express]'"), ("uvicorn.config", "'polyturn[serve]'"),
        ("bitsandbytes", "'polyturn[quantized]'"), ("spacy", "'polyturn[webshop]'"),
        ("matplotlib.figure", "'matplotlib>=3.9'"),
    ],
)  # fmt: skip
def test_a_package_that_is_missing_is_named_with_how_to_install_it(
    package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.common.find_spec", lambda _: None)
    missing = ModuleNotFoundError(f"No module named '{package}'", name=package)
    name = package.partition(".")[0]
    assert common.explain(missing) == f"the package {name} is not installed: pip install {install}"
    of_hydra = ImportError(f"Error loading 'agents.x': {missing!r}")
    of_hydra.__cause__ = missing
    assert common.explain(of_hydra) == common.explain(missing)


def test_a_module_that_polyturn_does_not_ask_for_is_a_bug() -> None:
    assert common.explain(ModuleNotFoundError("No module named 'nowhere'", name="nowhere")) is None
    assert (
        common.explain(ModuleNotFoundError("No module named 'matplotlib.nowhere'", name="matplotlib.nowhere")) is None
    )


def test_commands_start_without_torch_and_matplotlib() -> None:
    code = (
        "import sys, scripts.play, scripts.view, scripts.bench, scripts.evaluate, scripts.train\n"
        "print({'torch', 'matplotlib'} & sys.modules.keys())"
    )
    process = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=False)
    assert process.stdout == b"set()\n", process.stderr
