"""Play a task in the terminal: `python -m scripts.play env=alfworld task=3`; or watch: `… agent=expert delay=1`.

Enter an action or its number, `?` for help, `:undo` to take back a turn, `:q` (or Ctrl-D) to stop. If an action has a
place for any text, such as `search[<your query>]`, you are asked for the text.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import gymnasium as gym
from omegaconf import DictConfig
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from agents.agent import Agent, PolicyAgent, View
from agents.episode import Episode, Turn
from agents.parsing import SLOT
from agents.scripted import HumanAgent
from envs.core import Info, Task, TaskSet, UnknownNameError, evaluation_splits
from scripts.agents import check_agent, check_tasks, make_agent, model_of, needs_of_agent
from scripts.common import Terminal, command, make_task_set, printable
from scripts.view import result, show_goal

HELP = "enter an action or its number; ? for help, :undo to take back a turn, :q to stop"


@command("play")
def main(cfg: DictConfig) -> None:
    """Play one task."""
    console = Terminal()
    if cfg.get("agent"):
        check_agent(cfg)
    task_set = make_task_set(cfg)
    task = find_task(task_set, cfg.split or evaluation_splits(task_set)[0], str(cfg.task))
    if cfg.get("agent"):
        check_tasks(needs_of_agent(cfg.agent), cfg, task_set, task_set.manifest(task.split))
        agent, delay = make_agent(cfg.agent, task_set, model_of(cfg), cfg.seed), float(cfg.delay)
    else:
        agent, delay = HumanAgent(lambda view: ask(view, console)), 0.0
        console.print(HELP, style="dim")
    env = task_set.make()
    try:
        play(env, task, cfg.seed, agent, console, delay)
    finally:
        env.close()


def find_task(task_set: TaskSet, split: str, name: str) -> Task:
    """A task by its id, its number in the manifest, or a part of its id. Raises `ValueError` or `UnknownNameError`."""
    ids = task_set.manifest(split).ids
    if name.isdecimal() and name not in ids:
        if int(name) >= len(ids):
            raise ValueError(f"{split} has tasks 0 to {len(ids) - 1}, got task={name}")
        return task_set.task(split, ids[int(name)])
    matches = [name] if name in ids else [task_id for task_id in ids if name in task_id]
    if len(matches) > 1:
        raise ValueError(
            f"{len(matches)} tasks of {split} have {name!r} in their id, such as {matches[0]!r}; give a longer part"
        )
    if not matches:
        raise UnknownNameError(f"task of {split}", name, ids)
    return task_set.task(split, matches[0])


class StopPlaying(Exception):  # noqa: N818 - no error
    """The user wants to stop."""


class UndoTurn(Exception):  # noqa: N818 - no error
    """The user wants to take back the last turn."""


def ask(view: View, console: Console) -> str:
    """The action that the user enters. Raises `StopPlaying` and `UndoTurn`."""
    actions: list[str] = view.info["admissible"] or []
    while True:
        match entered := _read("[bold green]>[/] ", console):
            case ":q" | ":quit":
                raise StopPlaying
            case ":undo" | ":u":
                raise UndoTurn
            case "?" | ":help" | "":
                console.print(HELP, style="dim")
            case _ if entered.isdecimal() and entered not in actions and actions:
                if not 1 <= int(entered) <= len(actions):
                    console.print(f"enter a number from 1 to {len(actions)}", style="yellow")
                elif action := _fill(actions[int(entered) - 1], console):
                    console.print(Text(f"> {printable(action)}", style="dim"))
                    return action
            case _ if entered.startswith(":"):
                console.print(f"unknown command {printable(entered)}: {HELP}", style="yellow")
            case _ if entered in actions:
                if action := _fill(entered, console):
                    return action
            case _:
                return entered


def _read(prompt: str, console: Console) -> str:
    """A line that the user enters. Raises `StopPlaying` at the end of the input."""
    try:
        entered = console.input(prompt).strip()
    except EOFError:
        console.print()
        raise StopPlaying from None
    if not sys.stdin.isatty():
        console.print(printable(entered))  # show input that was piped in
    return entered


def _fill(action: str, console: Console) -> str:
    """The action with the texts that the user enters in its free places; empty if a text is empty."""
    entered = [_read(f"[green]{escape(printable(place[1:-1]))}:[/] ", console) for place in SLOT.findall(action)]
    texts = iter(entered)
    return SLOT.sub(lambda _: next(texts), action) if all(entered) else ""


def play(env: gym.Env[str, str], task: Task, seed: int, agent: Agent, console: Console, delay: float = 0.0) -> Episode:
    """Play one episode and print it, until it ends or the user stops."""
    observation, info = env.reset(seed=seed, options={"task": task})
    episode = Episode(task, group=0, goal=info["goal"], seed=seed)
    show_goal(episode, console)
    past: list[tuple[Any, str, Info]] = []  # before each turn: the environment's state, observation and info
    while True:
        if observation != info["goal"]:
            console.print(Text(printable(observation)))
        episode.score, episode.success, episode.stop_reason = info["score"], info["success"], info["stop_reason"]
        if episode.stop_reason:
            break
        if isinstance(agent, HumanAgent):
            console.print(_choices(info))
        try:
            decision = agent.act([View(0, episode, observation, info)])[0]
        except StopPlaying:
            break
        except UndoTurn:
            observation, info = _undo_turn(env, episode, past, observation, info, console)
            continue
        if decision.status is None:
            episode.stop_reason, episode.error = decision.stop_reason, decision.error
            break
        past.append((_snapshot(env), observation, info))
        turn = Turn(observation, decision.action, 0.0, info["state_key"], decision.status, decision.prompt_ids,
                    decision.completion_ids, decision.logprobs)  # fmt: skip
        episode.turns.append(turn)
        if not isinstance(agent, HumanAgent):
            time.sleep(delay)
            _show_decision(turn, agent, console)
        observation, reward, _, _, info = env.step(decision.action)
        turn.reward = float(reward)
    agent.finish(0)
    console.print(result(episode))
    return episode


def _choices(info: Info) -> Columns:
    actions = info["admissible"] or []
    width = len(str(len(actions)))
    numbered = [Text.assemble((f"{n:>{width}} ", "cyan"), printable(action)) for n, action in enumerate(actions, 1)]
    return Columns(numbered, padding=(0, 3), column_first=True)


def _snapshot(env: gym.Env[str, str]) -> Any:
    """The state of the environment; None if it has no snapshots."""
    try:
        return env.get_wrapper_attr("snapshot")()
    except (AttributeError, NotImplementedError):
        return None


def _undo_turn(
    env: gym.Env[str, str],
    episode: Episode,
    past: list[tuple[Any, str, Info]],
    observation: str,
    info: Info,
    console: Console,
) -> tuple[str, Info]:
    """Take back the last turn, or print why this is not possible. Returns the current observation and info."""
    if not past:
        console.print("there is no turn to take back", style="yellow")
        return observation, info
    state, before, info_before = past[-1]
    if state is None:
        console.print(f"{episode.task.env} has no snapshots, so no turn can be taken back", style="yellow")
        return observation, info
    env.get_wrapper_attr("restore")(state)
    del past[-1], episode.turns[-1]
    return before, info_before


def _show_decision(turn: Turn, agent: Agent, console: Console) -> None:
    if isinstance(agent, PolicyAgent):
        answer = agent.policy.tokenizer.decode(turn.completion_ids, skip_special_tokens=True).strip()
        if turn.action != answer and turn.action in answer.lower():  # it contains reasoning too
            console.print(Text(printable(answer), style="dim"))
    note = "" if turn.status == "ok" else f"  ({turn.status})"
    console.print(Text.assemble(("> ", "bold green"), (printable(turn.action), "bold"), (note, "yellow")))


if __name__ == "__main__":
    main()
