"""The project's results for the inputs of a recording, compared with the recorded ones; one function for each file."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from envs.core import cache_root
from envs.files import write_whole
from envs.search import grading, igpo, mt_grpo, search_r1, verl_agent
from envs.search.bm25 import BM25Retriever, tokenize
from envs.search.corpus import Corpus, Passage
from envs.search.retrieval import Hit, best_hits
from envs.tools.bfcl import INSTALL as INSTALL_BFCL
from tests.recordings import Recorder
from tests.search_replay.bfcl import replay_task
from tests.search_replay.official import StandIn, VerlAgentRow, calculate, run_llm_loop, serve, verl_agent_reply

DENSE_ROWS = 1000  # that are embedded; all would take minutes
DENSE_TOLERANCE = 1e-3


class NotInstalledError(ImportError):
    """A library that a recording needs is missing."""


class Stock:
    """The corpus that recordings are replayed on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def corpus(self) -> Corpus:
        return Corpus(self.path)

    @cached_property
    def titles(self) -> dict[str, Passage]:
        """The first passage of each title."""
        return {passage.title: passage for passage in reversed(list(self.corpus))}

    def stand_in(self, characters: int) -> StandIn:
        return StandIn(self.corpus, self.titles, characters)

    def part(self, rows: int) -> Corpus:
        """The first rows as a corpus of their own."""
        with self.path.open("rb") as file:
            lines = b"".join(line for line, _ in zip(file, range(rows), strict=False))
        path = cache_root() / "search_replay" / f"first-{rows}.jsonl"
        write_whole(path, lines)
        return Corpus(path)


# -- Search-R1 --------------------------------------------------------------------------------------------------------
def _em(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    recorder.check("prompt_template", search_r1.prompt("q?").replace("q?", "{q}"), data["prompt_template"])
    for number, case in enumerate(data["cases"]):
        recorder.cases += 1
        (_em_pair if case["kind"] == "pair" else _em_full)(f"case {number}, {case['category']}", case, recorder)


def _em_pair(where: str, case: dict[str, Any], recorder: Recorder) -> None:
    prediction, golds = case["prediction"], case["golds"]
    ours = {
        "normalized_prediction": grading.normalize(prediction),
        "normalized_golds": [grading.normalize(gold) for gold in grading.golds_of(golds)],
        "em": grading.exact_match(prediction, golds),
        "subem": grading.contains_match(prediction, golds),
    }
    recorder.check_fields(where, ours, _without(case, "category", "kind", "prediction", "golds"))


def _em_full(where: str, case: dict[str, Any], recorder: Recorder) -> None:
    solution, golds = case["solution"], case["golds"]
    ours = {
        "extracted": search_r1.extract(solution),
        "em": search_r1.em(solution, golds),
        "em_format_0_1": search_r1.em(solution, golds, format_score=0.1),
        "subem": search_r1.sub_em(solution, golds),
        "verl_agent_extracted": verl_agent.extract(solution),
        "verl_agent_em": verl_agent.em(solution, golds),
        "format_valid": list(search_r1.check_format(solution)),
        "info_blocks": search_r1.information_blocks(solution),
        "format_reward_v03": search_r1.format_em(solution, golds),
        "format_reward_retrieval_0_1": search_r1.format_em(solution, golds, retrieval=0.1),
        "format_reward_defaults": search_r1.format_em(solution, golds, structure=0.0, final=0.0),
    }
    recorder.check_fields(where, ours, _without(case, "category", "kind", "solution", "golds"))


def _postprocess(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    stand_in = stock.stand_in(160)
    for number, case in enumerate(data["cases"]):
        recorder.cases += 1
        if case["category"] == "single":
            kept = search_r1.cut(case["response"])
            action = search_r1.parse(kept)
            found = stand_in.contents(action.content, 3) if action.kind == "search" else []
            state = {
                "done": int(action.kind == "answer"),
                "valid": int(action.kind is not None),
                "is_search": int(action.kind == "search"),
            }
            ours: dict[str, Any] = {
                "truncated": kept,
                "action": action.kind,
                "content": action.content,
                "observation": search_r1.observation(action, found),
                **state,
                "final_rollout": {"observation": search_r1.observation(action, []), **state},
            }
            recorder.check_fields(f"case {number}", ours, _without(case, "category", "response"))
        else:
            rows = [(row["prompt"], row["policy_outputs"]) for row in case["rows"]]
            ours = run_llm_loop(case["config"], rows, stand_in.contents)
            kept_rows = [_without(row, "prompt", "policy_outputs") for row in case["rows"]]
            expected = {**_without(case, "category", "config"), "rows": kept_rows}
            recorder.check_fields(f"case {number}, loop", ours, expected)


def _format_passages(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    for number, case in enumerate(data["cases"]):
        recorder.cases += 1
        where = f"case {number}, {case['category']}"
        if case["category"].startswith("tool_"):
            _tool(where, case, recorder)
            continue
        contents = [entry["document"]["contents"] for entry in case["retrieval_result"]]
        text = verl_agent.tool_reply({"result": [case["retrieval_result"]]})
        ours = {
            "search_r1": search_r1.write_passages(contents),
            "search_r1_observation": search_r1.observation(search_r1.Action("search", "q"), contents),
            "verl_agent": verl_agent.write_passages(contents),
            "verl_agent_tool_text": text,
            "verl_agent_request": {"query": "the query", "topk": 3, "return_scores": True},
            "verl_agent_observation": verl_agent.information(text),
        }
        recorder.check_fields(where, ours, _without(case, "category", "retrieval_result"))


def _tool(where: str, case: dict[str, Any], recorder: Recorder) -> None:
    query, status = case["query"], case["response_status"]
    if query is None:
        text = ""
    elif status == 200:
        text = verl_agent.tool_reply(case["response_json"])
    else:
        text = verl_agent.tool_text(f"Search error: [Search Request ID: UUID] {verl_agent.http_error(status)}")
    request = None if query is None else verl_agent.request(query, 3)
    expected = _without(case, "category", "query", "response_status", "response_json")
    recorder.check_fields(where, {"result": text, "request": request}, expected)


# -- verl-agent -------------------------------------------------------------------------------------------------------
def _verl_agent(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    templates = {"no_history": verl_agent.PROMPT, "with_history": verl_agent.PROMPT_WITH_HISTORY}
    recorder.check_fields("templates", templates, data["templates"])
    stand_in = stock.stand_in(200)
    for number, case in enumerate(data["cases"]):
        recorder.cases += 1
        if case["category"] == "projection":
            action, valid = verl_agent.project(case["text"])
            recorder.check(f"case {number}, {case['text']!r}", (action, int(valid)), (case["action"], case["valid"]))
        else:
            _verl_agent_episode(f"case {number}", case, stand_in, recorder)


def _verl_agent_episode(where: str, case: dict[str, Any], stand_in: StandIn, recorder: Recorder) -> None:
    config, reset = case["config"], case["reset"]
    sources = [info["data_source"] for info in reset["infos"]]
    rows = [
        VerlAgentRow(question, golds, config, source)
        for question, golds, source in zip(case["questions"], case["golds"], sources, strict=True)
    ]
    recorder.check(f"{where}, first prompts", [row.prompt for row in rows], reset["text"])
    recorder.check(f"{where}, first anchors", case["questions"], reset["anchor"])
    for number, step in enumerate(case["steps"]):
        shown, queries = [], []
        for row, action in zip(rows, step["actions"], strict=True):
            one, query = row.step(action, lambda query: verl_agent_reply(stand_in, query, config["topk"]))
            shown.append(one)
            queries += [] if query is None else [json.dumps(verl_agent.request(query, config["topk"]))]
        ours = {
            "text": [one["text"] for one in shown],
            "anchor": [one["anchor"] for one in shown],
            "rewards": [one["reward"] for one in shown],
            "dones": [one["done"] for one in shown],
            "infos": [one["info"] for one in shown],
            "queries": sorted(queries),  # sent at the same time, and recorded in this order
        }
        expected = {**_without(step, "actions"), "queries": sorted(step["queries"])}
        recorder.check_fields(f"{where}, step {number}", ours, expected)


# -- IGPO -------------------------------------------------------------------------------------------------------------
def _igpo(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    recorder.check("system_prompt", igpo.system(), data["system_prompt"])
    recorder.check("belief_suffix", list(igpo.BELIEF), data["belief_suffix"])
    for number, case in enumerate(data["cases"]):
        recorder.cases += 1
        where = f"case {number}, {case['category']}"
        if case["category"] == "parse":
            parsed = igpo.parse(igpo.OPENING + case["generated"])
            recorder.check(where, list(parsed), case["is_stop_think_payload"])
        elif case["category"] == "tool":
            recorder.check(where, _igpo_tool(case["tool_call"]), case["content"])
        elif case["category"] == "placement":
            _igpo_placement(where, case, recorder)
        else:
            ours = {"balanced": igpo.is_balanced(case["solution"].lower()), **_igpo_scores(case)}
            recorder.check_fields(where, ours, _without(case, "category", "solution", "ground_truth", "data_source"))


def _igpo_scores(case: dict[str, Any]) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for kind in ("f1", "em", "noformatf1"):
        try:
            scores[kind] = igpo.score(case["solution"], case["ground_truth"], case.get("data_source", ""), kind)
        except Exception as error:  # recorded, too
            scores[kind] = f"raises {type(error).__name__}"
    return scores


def _igpo_tool(call: dict[str, Any]) -> Any:
    pages = []
    for query in igpo.queries_of(call) or ():
        hits = [
            {"title": f"T{j} {query}", "url": f"http://e/{j}", "quick_summary": f"snippet {j} of {query}"}
            for j in range(0 if query == "NOHITS" else 8)
        ]
        pages.append(hits)
    return igpo.tool_content(call, pages)


def _igpo_placement(where: str, case: dict[str, Any], recorder: Recorder) -> None:
    f1 = igpo.score(case["solution"], case["ground_truth"])
    places = igpo.place(case["solution"], case["info_gain"], f1)
    ours = {
        "length": len(case["solution"]),
        "nonzero": [[place, value] for place, value in places if value],
        "validation": _igpo_scores(case),
    }
    recorder.check_fields(where, ours, _without(case, "category", "solution", "ground_truth", "info_gain"))


# -- MT-GRPO ----------------------------------------------------------------------------------------------------------
def _mt_grpo(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    recorder.check("system_prompt", mt_grpo.SYSTEM, data["system_prompt"])
    recorder.check("tool", mt_grpo.TOOL, data["tool_schemas"]["wiki_search"][1])

    def find(query: str) -> str:
        special = {
            "EMPTY": " \n",
            "UNAVAILABLE": "Error: Pyserini is not available or failed to initialize.",
            "DURING": "Error during search: x",
        }
        if query == "BOOM":
            raise RuntimeError("index broken")
        passage = stock.titles.get(query)
        return special.get(query) or (f"{passage.title}\n{passage.text}" if passage else mt_grpo.NOTHING_FOUND)

    tools = {"wiki_search": mt_grpo.wiki_search(find)}
    for number, case in enumerate(data["cases"]):
        recorder.cases += 1
        where = f"case {number}, {case['category']}"
        if case["category"] == "calculator":
            recorder.check(where, calculate(case["expression"]), case["result"])
            continue
        ours: dict[str, Any] = {}
        messages = case["completion"]
        if case["category"] == "rollout":
            messages = _mt_grpo_rollout(case["policy_outputs"], tools)
            step = [message["content"] for message in messages if message["role"] == "assistant"]
            ours = {
                "completion": messages,
                "completed": mt_grpo.is_over(messages),
                "step_count": sum(mt_grpo.parse(text).tool is not None for text in step),
            }
        grades = mt_grpo.grade(messages, case["golds"])
        ours |= {
            "rewards": grades._asdict(),
            "turn_reward": grades.turn_reward,
            "outcome_reward": grades.outcome_reward,
            "parsed": [mt_grpo.parse(m["content"])._asdict() for m in messages if m["role"] == "assistant"],
        }
        inputs = ("policy_outputs",) if case["category"] == "rollout" else ("completion",)
        recorder.check_fields(where, ours, _without(case, "category", "golds", *inputs))


def _mt_grpo_rollout(outputs: list[str], tools: dict[str, Callable[..., str]]) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    for text in outputs:
        messages.append({"role": "assistant", "content": text})
        if mt_grpo.is_over(messages):
            break
        messages.append({"role": "user", "content": mt_grpo.respond(text, tools)})
    return messages


# -- retrieval --------------------------------------------------------------------------------------------------------
def _bm25(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    retrievers = {f"k1_{k1}_b_{b}": BM25Retriever(stock.corpus, k1, b) for k1, b in ((0.9, 0.4), (1.5, 0.75))}
    for case in data["cases"]:
        recorder.cases += 1
        where = f"query {case['query']!r:.80}"
        recorder.check(f"{where}, tokens", tokenize(case["query"]), case["tokens"])
        for name, retriever in retrievers.items():
            scores = retriever.scores(case["query"])
            recorder.check(f"{where}, {name}, nonzero", int((scores > 0).sum()), case["nonzero"])
            expected = [(row, score) for row, score in case[name] if score > 0]
            _check_ranking(f"{where}, {name}", retriever, case["query"], expected, recorder)


def _check_ranking(
    where: str, retriever: BM25Retriever, query: str, expected: list[tuple[int, float]], recorder: Recorder
) -> None:
    """Scores by position; rows where the rounded score is unique, as the order of equal ones is open there."""
    [hits] = retriever.search([query], len(expected) + 1)
    scores = [_rounded(hit.score) for hit in hits]
    far = [(a, b) for a, (_, b) in zip(scores, expected, strict=False) if abs(a - b) > 1.5e-5]
    recorder.check(f"{where}, scores", far, [])
    recorder.check(f"{where}, hits", len(hits) >= len(expected), True)
    rows = [(int(hit.passage.id), row) for hit, score, (row, _) in zip(hits, scores, expected, strict=False)
            if scores.count(score) == 1]  # fmt: skip
    recorder.check(f"{where}, rows", [ours for ours, _ in rows], [theirs for _, theirs in rows])


def _rounded(score: float) -> float:
    return round(score, 5)


def _dense(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    from envs.search.dense import PACKAGE, DenseRetriever

    if not find_spec("sentence_transformers") or not find_spec(PACKAGE):
        raise NotInstalledError("dense_rankings needs pip install 'polyturn[dense]'")
    retriever = DenseRetriever(stock.part(DENSE_ROWS))
    for case in data["cases"]:
        recorder.cases += 1
        where = f"query {case['query']!r:.80}"
        embedding = retriever.embed(case["query"])
        recorder.check(f"{where}, embedding", np.allclose(embedding[:4], case["embedding_first4"], atol=1e-4), True)
        hits = best_hits(retriever.corpus, retriever.scores(case["query"]), 5)
        expected = case[f"rows_0_{DENSE_ROWS - 1}_top5"]
        close = all(abs(hit.score - score) < DENSE_TOLERANCE for hit, (_, score) in zip(hits, expected, strict=True))
        recorder.check(f"{where}, scores", close, True)
        recorder.check(f"{where}, rows", *_told_apart(hits, expected))


def _told_apart(hits: list[Hit], expected: list[tuple[int, float]]) -> tuple[list[int], list[int]]:
    """Our rows and theirs at the places whose neighbours' scores are further away than noise."""
    scores = [score for _, score in expected]
    gaps = [abs(a - b) > 1e-4 for a, b in pairwise(scores)]
    clear = [before and after for before, after in zip([True, *gaps], [*gaps, True], strict=True)]
    ours = [int(hit.passage.id) for hit, is_clear in zip(hits, clear, strict=True) if is_clear]
    return ours, [row for (row, _), is_clear in zip(expected, clear, strict=True) if is_clear]


def _server(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    stand_in = stock.stand_in(120)
    for number, case in enumerate(data["cases"]):
        recorder.cases += 1
        status, reply = serve(case["category"], case["request"], stand_in.search)
        where = f"case {number}, {case['category']} {case['request']}"
        recorder.check(f"{where:.200}, status", status, case["status"])
        recorder.check(f"{where:.200}, reply", reply, case["response"])


# -- BFCL -------------------------------------------------------------------------------------------------------------
def _bfcl(data: dict[str, Any], stock: Stock, recorder: Recorder) -> None:
    if not find_spec("bfcl_eval") or not find_spec("mpmath"):
        raise NotInstalledError(f"bfcl_ground_truth needs {INSTALL_BFCL}")
    for case in data["cases"]:
        recorder.cases += 1
        replay_task(case["id"], case, recorder)


def _without(case: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in case.items() if name not in names}


# By the name of a recording, without what a collection adds before or after it.
REPLAYS: dict[str, Callable[[dict[str, Any], Stock, Recorder], None]] = {
    "search_r1_em": _em,
    "search_r1_postprocess": _postprocess,
    "search_r1_format_passages": _format_passages,
    "verl_agent_search": _verl_agent,
    "igpo_reward": _igpo,
    "mt_grpo_rewards": _mt_grpo,
    "bm25s_rankings": _bm25,
    "dense_rankings": _dense,
    "search_server_http": _server,
    "bfcl_ground_truth": _bfcl,
}


def kind_of(path: Path) -> str:
    """The recording that a file's name says it is, or else that name."""
    return next((name for name in REPLAYS if name in path.stem), path.stem)
