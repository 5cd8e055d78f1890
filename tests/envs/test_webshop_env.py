"""WebShop as an environment: the contract, rewards, info, and errors at the start."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import gymnasium as gym
import pytest

import envs  # noqa: F401 - makes the environments known to Gymnasium
from envs.conformance import Subject, TextEnvConformance
from envs.core import StopReason, Task, UnknownNameError
from envs.webshop import pages
from envs.webshop.catalogue import CatalogueNotFoundError
from envs.webshop.env import ANY_SEARCH, WebShopEnv
from envs.webshop.nouns import NounsNotFoundError
from tests.envs.webshop_shop import ATTRIBUTES, make_task, record

LAMP = ["search[red lamp]", "click[lamp000001]"]


class WebShopConformance(TextEnvConformance):
    protocol = "official"

    @pytest.fixture(autouse=True)
    def _play_in(self, shop_folder):
        self.folder = shop_folder

    def make_env(self):
        return WebShopEnv(max_turns=9, protocol=self.protocol)

    def subject(self):
        tasks = [make_task(self.folder), make_task(self.folder, 4, seed=3), make_task(self.folder, human=True)]
        return Subject(self.make_env, tasks, max_turns=9)


class TestOfficial(WebShopConformance):
    pass


class TestVerlAgent(WebShopConformance):
    protocol = "verl_agent"


class TestRich(WebShopConformance):
    def make_env(self):
        return gym.make("polyturn/WebShop-v0", max_turns=9, observation="text_rich", show_attributes=True).unwrapped


def play(env, task, actions):
    """The results of reset and of the steps: (observation, reward, terminated, truncated, info)."""
    observation, info = env.reset(options={"task": task})
    return [(observation, 0.0, False, False, info), *(env.step(action) for action in actions)]


def choices(task):
    return [f"click[{value}]" for value in task.payload["goal"]["goal_options"].values()]


def test_a_purchase_ends_the_episode_with_its_score(shop_folder):
    task = make_task(shop_folder)
    *before, (text, reward, terminated, _, info) = play(WebShopEnv(), task, [*LAMP, *choices(task), "click[buy now]"])
    assert [step[1:4] for step in before] == [(0.0, False, False)] * 5
    assert (reward, terminated, info["score"], info["success"]) == (1.0, True, 1.0, True)
    assert info["stop_reason"] == StopReason.SUCCESS
    assert text.endswith("[SEP] 1.0 [SEP] Reward Details [SEP] None")


def test_a_wrong_purchase_is_a_failure_with_part_of_the_score(shop_folder):
    task = make_task(shop_folder)
    _, reward, terminated, _, info = play(WebShopEnv(), task, [*LAMP, choices(task)[0], "click[buy now]"])[-1]
    assert (reward, terminated, info["score"], info["success"]) == (0.8, True, 0.8, False)
    assert info["stop_reason"] == StopReason.FAILURE


@pytest.mark.parametrize("protocol", ["official", "verl_agent"])
@pytest.mark.parametrize("score", [0.0, 0.5, 0.9, 0.95, 0.999, 1.0])
def test_success_is_the_whole_score_and_nothing_less(shop_folder, monkeypatch, protocol, score):
    score_purchase = pages.score_purchase
    monkeypatch.setattr(pages, "score_purchase", lambda *of: replace(score_purchase(*of), total=score))
    env, task = WebShopEnv(protocol=protocol), make_task(shop_folder)
    _, reward, terminated, _, info = play(env, task, [*LAMP, "click[buy now]"])[-1]
    assert (terminated, info["score"], info["success"]) == (True, score, score == 1.0)
    assert reward == (score if protocol == "official" else 10.0 * (score == 1.0))
    assert info["stop_reason"] == (StopReason.SUCCESS if score == 1.0 else StopReason.FAILURE)


def test_verl_agent_pays_ten_for_all_and_nothing_for_less(shop_folder):
    task, env = make_task(shop_folder), WebShopEnv(protocol="verl_agent")
    assert play(env, task, [*LAMP, *choices(task), "click[buy now]"])[-1][1] == 10.0
    _, reward, _, _, info = play(env, task, [*LAMP, "click[buy now]"])[-1]
    assert (reward, info["score"]) == (0.0, 0.6)


def test_prices_follow_the_seed_of_the_task(shop_folder):
    """The limit is between the prices that the lamp may have, and only the drawn one says whether it is kept."""
    task = make_task(shop_folder)
    goal = task.payload["goal"] | {"price_upper": 25.0}
    scores = set()
    for seed in range(8):
        tried = replace(task, payload={**task.payload, "goal": goal, "price_seed": seed})
        scores.add(play(WebShopEnv(), tried, [*LAMP, *choices(task), "click[buy now]"])[-1][4]["score"])
    assert scores == {0.8, 1.0}


def test_info_of_a_page(shop_folder):
    task = make_task(shop_folder)
    start, results, item, *_ = play(WebShopEnv(), task, [*LAMP, "click[red]"])
    assert start[4]["goal"] == task.payload["goal"]["instruction_text"]
    assert start[4]["type"] == "garden"
    assert start[4]["admissible"] == [ANY_SEARCH]
    assert results[4]["admissible"][:3] == ["click[back to search]", "click[next >]", "click[lamp000001]"]
    assert item[4]["admissible"][-1] == "click[large]"
    assert start[0] == f"WebShop [SEP] Instruction: [SEP] {start[4]['goal']} [SEP] Search"


def test_state_keys_know_what_was_chosen(shop_folder):
    steps = play(
        WebShopEnv(), make_task(shop_folder), [*LAMP, "click[red]", "click[nonsense]", "click[small]", "click[red]"]
    )
    _, _, item, red, refused, small, again = [step[4]["state_key"] for step in steps]
    assert steps[2][0] == steps[3][0]  # the text does not say
    assert item != red == refused != small == again


def test_verl_agents_state_key_is_its_anchor(shop_folder):
    task = make_task(shop_folder)
    start, *_, item, done = play(WebShopEnv(protocol="verl_agent"), task, [*LAMP, "click[buy now]"])
    assert start[4]["state_key"] == "'Search'"
    assert item[4]["state_key"].startswith("'Back to Search' [SEP] '< Prev' [SEP] 'color' [SEP] 'red' [SEP] ")
    assert done[4]["state_key"] == done[0]


def test_errors_of_the_official_environment_change_nothing(shop_folder):
    start, first, second = play(WebShopEnv(), make_task(shop_folder), ["search[<c>]", "search[<a> dimmable]"])
    assert first[0] == second[0] == start[0]


def test_random_results_follow_the_seed_and_snapshots(shop_folder):
    task, env = make_task(shop_folder), WebShopEnv()
    drawn = [step[0] for step in play(env, task, ["search[<r>]", "click[next >]"])[1:]]
    assert [step[0] for step in play(WebShopEnv(), task, ["search[<r>]", "click[next >]"])[1:]] == drawn
    assert play(env, replace(task, seed=1), ["search[<r>]"])[1][0] != drawn[0]
    env.reset(seed=1, options={"task": task})
    assert env.step("search[<r>]")[0] != drawn[0]

    play(env, task, ["search[<r>]"])
    state = pickle.loads(pickle.dumps(env.snapshot()))
    other = WebShopEnv()
    other.restore(state)
    assert other.step("click[next >]")[0] == env.step("click[next >]")[0] == drawn[1]


def test_instances_share_a_shop_but_no_state(shop_folder):
    task, one, two = make_task(shop_folder), WebShopEnv(), WebShopEnv(observation="text_rich")
    play(one, task, LAMP)
    assert play(two, task, ["search[red lamp]"])[1][0].count("[clicked button]") == 0
    assert one.step("click[small]")[4]["state_key"].endswith("size: small")


@pytest.mark.parametrize(("argument", "known"), [("observation", "text_rich"), ("protocol", "verl_agent")])
def test_unknown_modes_raise(argument, known):
    with pytest.raises(UnknownNameError, match=known):
        WebShopEnv(**{argument: "html"})


@pytest.mark.parametrize(
    "task", [None, "goal-1", Task("a", "b"), Task("a", "b", payload={"catalogue": "/", "price_seed": 0})]
)
def test_a_task_without_a_goal_raises(task):
    with pytest.raises(ValueError, match="payload has a 'catalogue', a 'price_seed' and a 'goal'"):
        WebShopEnv().reset(options={"task": task})


def test_a_goal_of_another_catalogue_raises(shop_folder):
    task = make_task(shop_folder)
    payload = {**task.payload, "goal": task.payload["goal"] | {"asin": "LAMP000009"}}
    with pytest.raises(UnknownNameError, match="LAMP000009"):
        WebShopEnv().reset(options={"task": replace(task, payload=payload)})


def test_a_folder_without_a_catalogue_is_named(shop_folder, tmp_path):
    task = make_task(shop_folder)
    with pytest.raises(CatalogueNotFoundError, match=r"scripts\.download webshop"):
        WebShopEnv().reset(options={"task": replace(task, payload={**task.payload, "catalogue": str(tmp_path)})})


def test_a_catalogue_without_nouns_raises_before_the_first_step(shop_folder, tmp_path):
    (tmp_path / "items_shuffle.json").write_text(json.dumps([record("LAMP000001", "A lamp nobody knows")]))
    (tmp_path / "items_ins_v2.json").write_text(json.dumps(ATTRIBUTES))
    task = make_task(shop_folder)
    with pytest.raises(NounsNotFoundError, match="--nouns"):
        WebShopEnv().reset(options={"task": replace(task, payload={**task.payload, "catalogue": str(tmp_path)})})
