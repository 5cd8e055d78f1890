"""No action text breaks an episode, or leaves the shop."""

from __future__ import annotations

import random

import pytest

from envs.conformance import ODD_ACTIONS
from envs.webshop.env import WebShopEnv
from tests.envs.webshop_shop import make_task

PIECES = [
    *(
        "search",
        "click",
        "Search",
        " click",
        "[",
        "]",
        "[[",
        "]]",
        "\n",
        " ",
        "",
        "\x00",
        "\x1b[31m",
        "\u2028",
        "\ud800",
    ),
    *(
        "buy now",
        "back to search",
        "next >",
        "< prev",
        "features",
        "description",
        "red",
        "large",
        "same",
        'y "z"',
        "lamp",
    ),
    *(
        "<r>",
        "<a>",
        "<c>",
        "<q>",
        "<c> bulbs",
        "bulb",
        "search_results",
        "item_page",
        "{}",
        "%s",
        "'",
        '"',
        "É",
        "取る",
        "🧪",
    ),
]


def random_action(rng, admissible):
    """Nonsense, something like an action, or what is listed."""
    dice = rng.random()
    if dice < 0.3:
        return "".join(rng.choices(PIECES, k=rng.randrange(6)))
    if dice < 0.5 or not admissible:
        return f"{rng.choice(PIECES[:5])}[{' '.join(rng.choices(PIECES, k=rng.randrange(3)))}]"
    return rng.choice(admissible)


@pytest.mark.parametrize(("observation", "actions"), [("text", 95_000), ("text_rich", 5_000)])
def test_random_actions_never_break_an_episode(shop_folder, observation, actions):
    rng, env = random.Random(0), WebShopEnv(max_turns=50, observation=observation)
    tasks = [make_task(shop_folder), make_task(shop_folder, 4)]
    over, purchases = True, 0
    for number in range(actions):
        if over:
            _, info = env.reset(seed=number, options={"task": rng.choice(tasks)})
        text, reward, terminated, truncated, info = env.step(random_action(rng, info["admissible"]))
        over = terminated or truncated
        purchases += terminated
        assert text
        assert 0.0 <= reward <= 1.0
        assert terminated == (info["admissible"] == [])
    assert purchases


def test_huge_actions_are_answered(shop_folder):
    million = 10**6
    huge = [
        *ODD_ACTIONS.values(),
        "[" * million,
        "]" * million,
        "search[" * (million // 7),
        f"click[{'x' * million}]",
        f"search[{'lamp ' * (million // 5)}]",
        f"search[{'x' * million}]",
        f"search[{'取' * (million // 4)}]",
    ]
    env = WebShopEnv(max_turns=100)
    env.reset(options={"task": make_task(shop_folder)})
    for action in ["search[lamp]", "click[lamp000002]", *huge]:
        assert env.step(action)[0]
