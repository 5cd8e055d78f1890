"""An endpoint that answers, stalls, refuses or talks nonsense: the real client, a real server on this machine."""

import threading

import pytest

from agents.agent import View
from agents.chat import Chat, History
from agents.endpoint import EndpointAgent, EndpointError
from agents.episode import Episode, ParseStatus, Turn
from agents.evaluation import evaluate
from agents.parsing import Line
from agents.policies.base import Sampling
from envs.core import Task
from envs.pool import EnvPool
from tests.agents.endpoint_server import Reply, Server, said
from tests.agents.toys import Corridors

INFO = {"goal": "reach the end", "admissible": ["go left", "go right"]}


def agent_of(url: str, **options) -> EndpointAgent:
    prompter = Chat("gym", Line(), History(), admissible=False)
    return EndpointAgent(
        "m", prompter, Sampling(0.0, 50), base_url=url, api_key="none", **{"max_retries": 0, **options}
    )


def view(key: int = 0, turns: tuple[Turn, ...] = ()) -> View:
    return View(key, Episode(Task("t", "Test-v0", "valid"), 0, turns=list(turns)), "You are in room 1.", INFO)


def test_the_conversation_goes_out_and_the_action_comes_back(serve) -> None:
    server = serve(lambda _: said("I think.\ngo right"))
    agent = agent_of(server.url, prices=(2.0, 10.0))
    first = view()
    (decision,) = agent.act([first])
    assert (decision.action, decision.status, decision.completion_ids) == ("go right", ParseStatus.OK, [])
    first.episode.turns.append(Turn("You are in room 1.", "go right", 0.0, ""))
    first.observation = "You are in room 2."
    agent.act([first])
    roles = [message["role"] for message in server.asked[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert server.asked[1]["messages"][2]["content"] == "I think.\ngo right"
    assert server.asked[1]["messages"][3]["content"] == "You are in room 2."
    assert (server.asked[1]["model"], server.asked[1]["temperature"], server.asked[1]["max_tokens"]) == ("m", 0.0, 50)
    assert (agent.usage.requests, agent.usage.prompt_tokens, agent.usage.completion_tokens) == (2, 200, 14)
    assert agent.usage.cost == pytest.approx((200 * 2 + 14 * 10) / 1e6)
    assert "2 requests, 200 prompt tokens, 14 completion tokens, cost 0.00054" in agent.usage.describe()


@pytest.mark.parametrize(
    ("reply", "status", "action"),
    [
        (said("go left"), ParseStatus.OK, "go left"),
        (said("fly"), ParseStatus.ILLEGAL, "fly"),
        (said(None), ParseStatus.MALFORMED, ""),
        (said("go le", finish="length"), ParseStatus.TRUNCATED, "go le"),
    ],
)
def test_what_became_of_an_answer_is_its_status(serve, reply: Reply, status: ParseStatus, action: str) -> None:
    (decision,) = agent_of(serve(lambda _: reply).url).act([view()])
    assert (decision.status, decision.action) == (status, action)


def test_requests_run_side_by_side_and_come_back_in_order(serve) -> None:
    together = threading.Barrier(4, timeout=10)

    def reply(request: dict) -> Reply:
        together.wait()  # passes only when four requests are here at a time
        return said(request["messages"][-1]["content"])

    views = [view(key) for key in range(8)]
    for key, one in enumerate(views):
        one.observation = f"answer {key}"
    decisions = agent_of(serve(reply).url, concurrency=4).act(views)
    assert [d.action for d in decisions] == [f"answer {key}" for key in range(8)]


def test_a_busy_server_is_asked_again(serve) -> None:
    replies = iter([(429, {"Retry-After": "0.01"}, "{}"), (503, {}, "{}"), said("go left")])
    server = serve(lambda _: next(replies))
    (decision,) = agent_of(server.url, max_retries=2).act([view()])
    assert (decision.action, len(server.asked)) == ("go left", 3)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ((401, {}, '{"error": {"message": "bad key"}}'), "AuthenticationError.*bad key"),
        ((500, {}, "oops"), "InternalServerError"),
        ((200, {}, "<html>hello</html>"), "nonsense|without a message"),
        ((200, {}, '{"hello": 1}'), "without a message"),
        ((200, {}, '{"choices": []}'), "without a message"),
    ],
)
def test_what_is_no_answer_is_an_error_with_a_name(serve, reply: Reply, error: str) -> None:
    with pytest.raises(EndpointError, match=error):
        agent_of(serve(lambda _: reply).url).act([view()])


def test_a_slow_and_a_dead_endpoint_are_told(serve) -> None:
    release = threading.Event()

    def stall(_) -> Reply:
        release.wait(10)
        return said("go left")

    server = serve(stall)
    with pytest.raises(EndpointError, match="APITimeoutError"):
        agent_of(server.url, timeout=0.2).act([view()])
    release.set()
    dead = Server(stall)
    dead.close()
    with pytest.raises(EndpointError, match=r"APIConnectionError|APITimeoutError"):
        agent_of(dead.url, timeout=0.5).act([view()])


def test_an_evaluation_keeps_the_episodes_that_ended_before_the_endpoint_died(serve) -> None:
    answers = iter(range(10_000))

    def reply(_) -> Reply:
        return said("go right") if next(answers) < 12 else (500, {}, "gone")

    ended: list[Episode] = []
    agent = agent_of(serve(reply).url, concurrency=1)
    with EnvPool(Corridors().make, 1) as pool, pytest.raises(EndpointError, match=r"gone|500"):
        evaluate(agent, Corridors(), "valid", pool, on_episode=ended.append)
    assert ended
    assert all(episode.stop_reason for episode in ended)


def test_bad_settings_are_told(monkeypatch) -> None:
    with pytest.raises(ValueError, match="concurrency"):
        agent_of("http://localhost:1/v1", concurrency=0)
    prompter = Chat("gym", Line(), History("last_k", 2, max_tokens=100))
    with pytest.raises(ValueError, match="max_tokens"):
        EndpointAgent("m", prompter, Sampling(), base_url="http://localhost:1/v1", api_key="none")
    with pytest.raises(ValueError, match="stop"):
        EndpointAgent("m", Chat("gym", Line(), History()), Sampling(stop=["x"]), base_url="http://localhost:1/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EndpointError, match="OPENAI_API_KEY"):
        EndpointAgent("m", Chat("gym", Line(), History()), Sampling(), base_url="http://localhost:1/v1")
