"""The project's results for the inputs of a recording, compared with the recorded ones, for each kind of recording."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from agents.episode import ParseStatus, Turn
from agents.prompts import WebShopTemplate
from envs.core import Task
from envs.webshop.analysis import analyze
from envs.webshop.catalogue import Catalogue, document
from envs.webshop.env import ANY_SEARCH, WebShopEnv, open_shop
from envs.webshop.goals import NO_LIMIT, Goal, build_goals, sample_prices
from envs.webshop.pages import Shop, UnansweredError
from envs.webshop.reward import normalize_color, score_purchase, token_set_ratio
from envs.webshop.tasks import worker_draws
from tests.recordings import Recorder
from tests.webshop_replay.official import OfficialEnv

TOLERANCE = 1e-4  # of the scores of searches


class Stock:
    """The catalogue of a folder, the small one if there are two, and its shops, for replaying recordings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.size = "small" if (folder / "items_shuffle_1000.json").is_file() else None

    @cached_property
    def catalogue(self) -> Catalogue:
        return self.shop().catalogue

    def shop(self, show_attributes: bool = False) -> Shop:
        return open_shop(self.folder, self.size, show_attributes)


def kind_of(data: Any) -> str:
    """The kind of a recording; two that were written without it are recognised by their contents."""
    if not isinstance(data, dict):
        return type(data).__name__
    if "kind" in data:
        return str(data["kind"])
    if {"stats", "doc_token_counts", "df"} <= set(data):
        return "webshop-index-stats"
    pages = [page for pages in data.values() if isinstance(pages, list) for page in pages]
    return "webshop-html" if pages and all(str(page).startswith("<!DOCTYPE html>") for page in pages) else "none"


def _search(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    most = data["params"]["k"]
    for case in data["cases"]:
        recorder.cases += 1
        where = f"query {case['query']!r:.80}"
        recorder.check(f"{where}, tokens", analyze(case["query"]), case["tokens"])
        hits = stock.shop().index.scored(case["query"], most)
        asins = [stock.catalogue.asins[i] for i, _ in hits]
        recorder.check(f"{where}, ranks", asins, [asin for asin, _ in case["hits"]])
        recorder.check(f"{where}, plain ranks", stock.shop().index.search(case["query"], most), [i for i, _ in hits])
        far = [(ours, theirs) for (_, ours), (_, theirs) in zip(hits, case["hits"], strict=False) if _far(ours, theirs)]
        recorder.check(f"{where}, scores further apart than {TOLERANCE}", far, [])


def _far(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) > TOLERANCE


def _analysis(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    for case in data["cases"]:
        recorder.cases += 1
        product = stock.catalogue.product(stock.catalogue.index(case["id"]))
        recorder.check(f"document {case['id']}", analyze(document(product)), case["tokens"])
    for word, tokens in data["words"]:
        recorder.cases += 1
        recorder.check(f"word {word!r}", analyze(word), tokens)


def _index_stats(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    catalogue = stock.catalogue
    terms = [Counter(analyze(document(catalogue.product(i)))) for i in range(len(catalogue))]
    holding = Counter(term for counts in terms for term in counts)
    lengths = [counts.total() for counts in terms]
    recorder.cases += len(terms)
    stats = {
        "total_terms": sum(lengths),
        "documents": len(terms),
        "non_empty_documents": sum(map(bool, lengths)),
        "unique_terms": len(holding),
    }
    recorder.check_fields("stats", stats, data["stats"])
    for asin, count in data["doc_token_counts"]:
        recorder.check(f"tokens of {asin}", lengths[catalogue.index(asin)], count)
    for term, count in data["df"].items():
        recorder.check(f"documents with {term}", holding[term], count)


def _catalogue(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    catalogue = stock.catalogue
    recorder.check("asins", list(catalogue.asins), [row[0] for row in data["rows"]])
    for row in data["rows"]:
        recorder.cases += 1
        product = catalogue.product(catalogue.index(row[0]))
        ours = {
            "asin": product.asin,
            "Title": product.name,
            "Price": product.price_tag,
            "pricing": list(product.prices),
            "options": [[name, list(values)] for name, values in product.options.items()],
            "category": product.category,
            "query": product.query,
            "product_category": product.product_category,
            "Attributes": list(product.attributes),
            "Rating": "N.A.",
            "n_bullets": len(product.bullets),
            "len_description": len(product.description),
            "MainImage": product.image,
        }
        theirs = dict(zip(data["fields"], row, strict=True))
        theirs["options"] = [[name, values] for name, values in theirs["options"].items()]  # their order counts
        recorder.check_fields(f"product {row[0]}", ours, theirs)


def _nouns(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    for asin, nouns in data["nouns"].items():
        recorder.cases += 1
        recorder.check(f"nouns of {asin}", list(stock.catalogue.nouns(stock.catalogue.index(asin))), nouns)


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _canonical(goal: Goal) -> str:
    return json.dumps(goal.to_json(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _goals(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    catalogue = stock.catalogue
    for case in data["cases"]:
        recorder.cases += 1
        seed, human = case["seed"], case["human_goals"]
        where = f"seed {seed}, {'human' if human else 'synthetic'}, {case['mode']}"
        goals = build_goals(catalogue, seed, human=human, shuffle_seed=case["shuffle_seed"])
        prices = dict(zip(catalogue.asins, sample_prices(catalogue, seed).tolist(), strict=True))
        made = list(goals)
        ours = {
            "count": len(goals),
            "sha256_goals": _sha256(map(_canonical, made)),
            "sha256_instructions": _sha256(goal.instruction_text for goal in made),
            "sha256_asin_order": _sha256(goal.asin for goal in made),
            "sha256_prices": _sha256(f"{asin} {price}" for asin, price in prices.items()),
            "n_price_upper_sentinel": sum(goal.price_upper == NO_LIMIT for goal in made),
        }
        recorder.check_fields(where, ours, {name: case[name] for name in ours})
        for asin, price in case["prices_sample"]:
            recorder.check(f"{where}, price of {asin}", prices[asin], price)
        for goal in case["goals"]:
            index = goal["index"]
            recorder.check(f"{where}, goal {index}", {"index": index, **goals[index].to_json()}, goal)
        if case["mode"] == "official":
            env = OfficialEnv(stock.shop(), seed, human)
            recorder.check(f"{where}, sum of weights", env.weights[-1], case["cum_weight_total"])
            for number, reset in enumerate(case["random_resets_after_construction"]):
                got = {"session": env.session, "goal_index": env.goal_index}  # at first those of the construction
                recorder.check(f"{where}, reset {number}", got, reset)
                env.reset()


def _goal_nouns(goal: Goal, catalogue: Catalogue) -> tuple[str, ...]:
    """The nouns of the goal's name; one that no product has is taken for a list of nouns, but for stop words."""
    index = catalogue.index(goal.asin)
    if catalogue.product(index).name == goal.name:
        return catalogue.nouns(index)
    return tuple(word for word in goal.name.lower().split() if analyze(word))


def _reward(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    catalogue = stock.catalogue
    for number, case in enumerate(data["cases"]):
        recorder.cases += 1
        goal, index, expected = Goal.from_json(case["goal"]), catalogue.index(case["asin"]), case["expected"]
        options = list(case["options"].values())
        nouns = catalogue.nouns(index), _goal_nouns(goal, catalogue)
        reward = score_purchase(catalogue.product(index), goal, case["price"], options, *nouns)
        details = reward.details()
        ours = {
            "total": reward.total,
            "info": details,
            "num_attr_matches": reward.attributes_met,
            "num_option_matches": reward.options_met,
            "r_att": details["r_att"],
            "r_option": details.get("r_option"),
        }
        recorder.check_fields(f"{number}, {case['category']}", ours, expected)


def _fuzz(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    for a, b, expected in data["token_set_ratio"]:
        recorder.cases += 1
        texts = [str(tuple(text)) if isinstance(text, list) else text for text in (a, b)]
        recorder.check(f"{a!r} and {b!r}", token_set_ratio(*texts), expected)
    for text, expected in data["normalize_color"]:
        recorder.cases += 1
        recorder.check(
            f"colour of {text!r}", normalize_color(tuple(text) if isinstance(text, list) else text), expected
        )


def _episodes(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    for episode in data["episodes"]:
        recorder.cases += 1
        name, server = episode["name"], episode["server"]
        recorder.check(f"{name}, what the server has", sorted(server), ["human_goals", "seed", "show_attrs"])
        env = OfficialEnv(stock.shop(server["show_attrs"]), server["seed"], server["human_goals"])
        if episode["random_seed_before_reset"] is not None:
            env.rng.seed(episode["random_seed_before_reset"])
        env.reset(episode["session"])
        recorder.check(f"{name}, session", env.session, episode["session_name"])
        places = [index % len(env.goals) for index in (env.goal_index, episode["goal_index"])]  # -1 is the last
        recorder.check(f"{name}, goal's index", *places)
        recorder.check(f"{name}, goal", env.page.goal.to_json(), episode["goal"])
        _check_page(f"{name}, reset", env, episode["reset"], recorder)
        for number, step in enumerate(episode["steps"]):
            where = f"{name}, step {number}, {step['action']!r:.60}"
            try:
                reward, done = env.step(step["action"])
            except UnansweredError as error:
                recorder.check(f"{where}, error", error.official, step.get("error"))
                continue
            _check_page(where, env, step, recorder)
            recorder.check(f"{where}, reward and done", (reward, done), (step.get("reward"), step.get("done")))
        if "final" in episode:
            final = _final(env) | {"n_steps": len(episode["steps"])}
            recorder.check_fields(f"{name}, final", final, episode["final"])


def _check_page(where: str, env: OfficialEnv, expected: Mapping[str, Any], recorder: Recorder) -> None:
    for field, value in env.shown().items():
        recorder.check(f"{where}, {field}", value, expected.get(field))


def _final(env: OfficialEnv) -> dict[str, Any]:
    """What the server knows of a session with a purchase."""
    page = env.page
    return {
        "asin": env.shop.catalogue.asins[page.product] if page.product >= 0 else None,
        "options": dict(page.options),
        "reward": env.bought and env.bought.total,
        "verbose_info": env.bought and env.bought.details(),
        "actions": dict(env.actions),
    }


def _history(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    for number, case in enumerate(data["cases"]):
        recorder.cases += 1
        server, limits = case["server"], (case["num_prev_obs"], case["num_prev_actions"])
        env = OfficialEnv(stock.shop(server.get("show_attrs", False)), server["seed"], server["human_goals"], *limits)
        env.reset(case["session"])
        recorder.check(f"case {number}, reset", env.state, case["reset"])
        for place, step in enumerate(case["steps"]):
            reward, done = env.step(step["action"])
            got = {"action": step["action"], "state": env.state, "reward": reward, "done": done}
            recorder.check_fields(f"case {number}, step {place}", got, step)


def _verl_agent(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    goals = cache(lambda seed, human: build_goals(stock.catalogue, seed, human=human, shuffle_seed=seed))
    for number, run in enumerate(data["runs"]):
        many = len(goals(run["worker_seeds"][0], run["human_goals"]))
        draws = worker_draws(run["seed"], run["env_num"], many, is_train=run["is_train"], resets=1)[0]
        workers = [draw for draw in draws for _ in range(run["group_n"])]
        recorder.check(f"run {number}, seeds", [draw.seed for draw in workers], run["worker_seeds"])
        recorder.check(f"run {number}, goals", [str(draw.place) for draw in workers], run["goal_index"])
        for place, draw in enumerate(workers):
            recorder.cases += 1
            goal = goals(draw.seed, run["human_goals"])[draw.place]
            worker = _Worker(stock, draw.seed, goal, run)
            where = f"run {number}, worker {place}"
            recorder.check(f"{where}, goal", goal.to_json(), run["goals"][place])
            recorder.check(f"{where}, task", goal.instruction_text, run["tasks"][place])
            recorder.check_fields(f"{where}, reset", worker.shown() | {"won": False}, run["reset"][place])
            for turn, steps in enumerate(run["steps"]):
                if steps[place] is not None:
                    got = worker.step(steps[place]["raw"])
                    recorder.check_fields(f"{where}, step {turn}", got, steps[place])


class _Worker:
    """One environment of verl-agent, and the prompts that are made for it."""

    def __init__(self, stock: Stock, seed: int, goal: Goal, run: Mapping[str, Any]) -> None:
        shop = {"catalogue": str(stock.folder), "size": stock.size}
        payload = {**shop, "price_seed": seed, "goal": goal.to_json()}
        self.env = WebShopEnv(run["max_steps"], protocol="verl_agent")
        self.template = WebShopTemplate(run["history_length"])
        self.observation, self.info = self.env.reset(options={"task": Task("", "", payload=payload)})
        self.turns: list[Turn] = []

    def shown(self) -> dict[str, Any]:
        clicks = [action.removeprefix("click[")[:-1] for action in self.info["admissible"]]
        searching = self.info["admissible"] == [ANY_SEARCH]
        return {
            "prompt": self.template.render(self.turns, self.observation, self.info),
            "anchor": self.info["state_key"],
            "available_actions": {"has_search_bar": searching, "clickables": ["search"] if searching else clicks},
        }

    def step(self, raw: str) -> dict[str, Any]:
        action, status = self.template.read(raw, True, self.info)
        before = self.observation
        self.observation, reward, done, _, self.info = self.env.step(action)
        self.turns.append(Turn(before, action, float(reward), ""))
        step = {
            "raw": raw,
            "projected": action,
            "reward": reward,
            "done": done,
            "won": self.info["success"],
            "task_score": self.info["score"],
            "is_action_valid": int(status == ParseStatus.OK),
        }
        return step | ({"anchor": self.info["state_key"]} if done else self.shown())


Replay = Callable[[dict[str, Any], Stock, Recorder], None]
REPLAYS: dict[str, Replay | None] = {
    "webshop-search": _search,
    "webshop-analyzer": _analysis,
    "webshop-index-stats": _index_stats,
    "webshop-catalogue": _catalogue,
    "webshop-title-nouns": _nouns,
    "webshop-goals": _goals,
    "webshop-reward": _reward,
    "webshop-fuzz": _fuzz,
    "webshop-episodes": _episodes,
    "webshop-history": _history,
    "webshop-verl-agent": _verl_agent,
    "webshop-html": None,
}
