"""RAGEN's turn protocol: several actions in an answer. Recordings of it are in `tests.env_replay`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from agents.agent import Decision, View
from agents.episode import Episode, ParseStatus, Turn
from agents.policies.base import Sampling
from agents.ragen import Ragen, RagenAgent, played
from agents.rollout import Job, rollout
from envs.core import StopReason, Task, UnknownNameError
from envs.pool import EnvPool
from envs.sokoban.env import ENV_ID, SokobanEnv
from tests.agents.test_chat import CHATML
from tests.agents.toys import random_policy

TASK = Task("a", ENV_ID, payload={"room": "#######\n#P_X_O#\n#######"})
MOVES = {"actions": ["up", "down", "left", "right"], "admissible": ["right"]}


class Says:
    """An agent that gives prepared answers through the prompter."""

    def __init__(self, prompter: Ragen, *answers: str, most: int = 10) -> None:
        self.prompter, self.answers, self.most = prompter, answers, most

    def act(self, views: Sequence[View]) -> list[Decision]:
        return [
            played(Decision(*self.prompter.read(self.answers[len(view.episode.turns)], True, view.info)), self.most)
            for view in views
        ]

    def finish(self, key: int) -> None:
        """Does nothing."""


def play(agent: Says, max_turns: int = 5, task: Task = TASK, env_turns: int = 10) -> Episode:
    with EnvPool(lambda: SokobanEnv(env_turns), 1) as pool:
        return rollout(agent, pool, [Job(task)], max_turns=max_turns)[0]


def answer(text: str) -> str:
    return f"<think>hm</think><answer>{text}</answer>"


@pytest.mark.parametrize(
    ("text", "actions", "status"),
    [
        (answer("Right"), "right", ParseStatus.OK),
        (answer(" LEFT ||up"), "left || up", ParseStatus.OK),
        (answer("Up || Down || Left"), "up || down", ParseStatus.OK),
        (answer("Right || fly"), "right", ParseStatus.ILLEGAL),
        (answer("fly"), "", ParseStatus.ILLEGAL),
        (answer(" || "), "", ParseStatus.MALFORMED),
        (f"so: {answer('Up')} there", "up", ParseStatus.OK),
        ("<think>a</think> b <answer>Up</answer>", "", ParseStatus.MALFORMED),
        ("<answer>Up</answer>", "", ParseStatus.MALFORMED),
        ("up", "", ParseStatus.MALFORMED),
    ],
)
def test_actions_are_read_as_ragen_reads_them(text: str, actions: str, status: ParseStatus) -> None:
    assert Ragen("sokoban").read(text, True, MOVES) == (actions, status)
    assert Ragen("sokoban").read(text, False, MOVES) == ("", ParseStatus.TRUNCATED)


def test_without_names_any_text_is_an_action_and_without_all_the_admissible_ones_count() -> None:
    assert Ragen("countdown").read(answer("1 + 2"), True, {"admissible": None}) == ("1 + 2", ParseStatus.OK)
    assert Ragen("bandit").read(answer("pilot"), True, {"admissible": ["Pilot"]}) == ("Pilot", ParseStatus.OK)


def test_the_actions_of_an_answer_are_one_turn_and_end_with_the_episode() -> None:
    prompter = Ragen("sokoban", actions_per_turn=4)
    episode = play(Says(prompter, answer("left || right"), answer("right || right || up || down")))
    assert [turn.action for turn in episode.turns] == ["left || right", "right || right || up || down"]
    assert [turn.reward for turn in episode.turns] == [-0.1 - 0.1, -0.1 + 10.9]
    assert episode.stop_reason is StopReason.SUCCESS
    assert episode.turns[1].observation == "#######\n#_PX_O#\n#######"


def test_an_answer_without_an_action_uses_a_turn_and_not_the_environment() -> None:
    episode = play(Says(Ragen("sokoban"), "?", answer("fly"), answer("right")), max_turns=3, env_turns=2)
    assert [(turn.reward, turn.status.value) for turn in episode.turns] == [
        (0.0, "malformed"), (0.0, "illegal"), (-0.1, "ok"),
    ]  # fmt: skip
    assert episode.stop_reason is StopReason.TURN_LIMIT
    assert len({turn.observation for turn in episode.turns}) == 1


def test_the_last_turn_plays_all_its_actions() -> None:
    episode = play(Says(Ragen("sokoban"), answer("left || right")), max_turns=1)
    assert episode.turns[0].reward == -0.1 - 0.1
    assert episode.final_observation == "#######\n#_PX_O#\n#######"


def test_an_agent_ends_its_episodes_at_the_limits_of_turns_and_actions() -> None:
    policy = random_policy(context=4096)
    generator = torch.Generator().manual_seed(0)
    agent = RagenAgent(policy, Ragen("sokoban", max_turns=3, max_actions=4), Sampling(1.0, 8), generator)
    turn = Turn("state", "up || down", -0.2, "", completion_ids=[])
    for turns, ended in (([turn], False), ([turn] * 2, True), ([replace(turn, action="")] * 3, True)):
        view = View(0, Episode(TASK, 0, list(turns)), "state", {**MOVES, "goal": ""})
        [decision] = agent.act([view])
        assert (decision.status is None) == ended
        if ended:
            assert decision.stop_reason is StopReason.TURN_LIMIT
        else:
            assert decision.actions == (), "random ids are no answer"


def test_prompts_have_the_conversation_in_the_chat_template_with_answers_as_they_were_read() -> None:
    tokenizer = random_policy(context=4096).tokenizer
    prompter = Ragen("sokoban")
    said = tokenizer.encode("<think>x </think> \n<answer>up||down||left</answer>", add_special_tokens=False)
    turn = Turn("#P#", "up || down", -0.2, "", completion_ids=[*said, tokenizer.eos_token_id])
    without = tokenizer.decode(prompter.prompt_ids(tokenizer, [turn], "#_#", {}))
    tokenizer.chat_template = CHATML
    shown = tokenizer.decode(prompter.prompt_ids(tokenizer, [turn], "#_#", {}))
    for text in (without, shown):
        assert "<think>x</think><answer>up || down</answer>" in text
        assert "Reward:\n-0.2\n\nTurn 2:\nState:\n#_#\nYou have 8 actions left." in text
    assert shown.count("<|im_start|>user") == 2
    assert prompter.read(prompter.write("up"), True, MOVES) == ("up", ParseStatus.OK)
    ids = prompter.action_ids(tokenizer, "up")
    assert tokenizer.decode(ids[:-1]) == "<think></think><answer>up</answer>"


def test_wrong_settings_are_errors() -> None:
    with pytest.raises(UnknownNameError, match="sokoban_coord"):
        Ragen("soko")
    with pytest.raises(ValueError, match="at least 1"):
        Ragen("sokoban", max_actions=0)
