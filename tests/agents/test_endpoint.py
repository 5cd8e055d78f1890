"""An endpoint that answers, stalls, refuses or sends unreadable answers, with the real client and a local server."""

import threading

import pytest

from agents.agent import View
from agents.chat import EMPTY, Chat, History
from agents.endpoint import SHORT_QUESTION, EndpointAgent, EndpointError
from agents.episode import Episode, ParseStatus, Turn
from agents.evaluation import evaluate
from agents.parsing import Json, Line, Parser
from agents.policies.base import Sampling
from envs.core import StopReason, Task
from envs.pool import EnvPool
from tests.agents.corridors import Corridors
from tests.agents.endpoint_server import Reply, Server, answered, refused

THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "go right?"}]}
INFO = {"goal": "reach the end", "admissible": ["go left", "go right"]}


def agent_of(url: str, parser: Parser | None = None, model: str = "m", **options) -> EndpointAgent:
    prompter = Chat("gym", parser or Line(), History(), admissible=False)
    return EndpointAgent(
        model, prompter, Sampling(0.0, 50), base_url=url, api_key="none", **{"max_retries": 0, **options}
    )


def view(key: int = 0, turns: tuple[Turn, ...] = ()) -> View:
    return View(key, Episode(Task("t", "Test-v0", "valid"), 0, turns=list(turns)), "You are in room 1.", INFO)


def test_the_conversation_is_sent_and_the_action_parsed(serve) -> None:
    server = serve(lambda _: answered("I think.\ngo right"))
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
        (answered("go left"), ParseStatus.OK, "go left"),
        (answered("fly"), ParseStatus.ILLEGAL, "fly"),
        (answered(None), ParseStatus.MALFORMED, ""),
        (answered("go le", finish="length"), ParseStatus.TRUNCATED, "go le"),
        (answered("go le", finish="content_filter"), ParseStatus.TRUNCATED, "go le"),
        (answered(None, finish="content_filter"), ParseStatus.TRUNCATED, ""),
        (answered("go left", finish=None), ParseStatus.OK, "go left"),
        (answered(None, refusal="I cannot do that."), ParseStatus.ILLEGAL, "I cannot do that."),
        (answered("go left", reasoning_content="go right?"), ParseStatus.OK, "go left"),
        (answered(None, reasoning_content="go right?"), ParseStatus.MALFORMED, ""),
        (answered([{"type": "text", "text": "So:"}, {"type": "text", "text": "\ngo left"}]), ParseStatus.OK, "go left"),
        (answered([THINKING, {"type": "text", "text": "go left"}]), ParseStatus.OK, "go left"),
        (answered([THINKING]), ParseStatus.MALFORMED, ""),
        (answered([]), ParseStatus.MALFORMED, ""),
        (answered([None, 3, {"type": "text", "text": "go left"}], tool_calls=[None]), ParseStatus.OK, "go left"),
        (answered("go \ud800"), ParseStatus.ILLEGAL, "go \ufffd"),
    ],
)
def test_a_reply_is_ok_malformed_or_truncated(serve, reply: Reply, status: ParseStatus, action: str) -> None:
    (decision,) = agent_of(serve(lambda _: reply).url).act([view()])
    assert (decision.status, decision.action) == (status, action)


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "act", "arguments": '{"action": "on"}'}}]},
        {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "act", "arguments": {"action": "on"}}}]},
        {"function_call": {"name": "act", "arguments": '{"action": "on"}'}},
    ],
)
@pytest.mark.parametrize("content", [None, "", "I switch it."])
def test_a_tool_call_is_parsed_and_kept_in_the_history(serve, content, fields: dict) -> None:
    server = serve(lambda _: answered(content, "tool_calls", **fields))
    agent, first = agent_of(server.url, Json()), view()
    first.info = {"goal": "", "admissible": ["on"]}
    (decision,) = agent.act([first])
    assert (decision.status, decision.action) == (ParseStatus.OK, "on")
    first.episode.turns.append(Turn("You are in room 1.", "on", 0.0, ""))
    agent.act([first])
    assert Json().parse(server.asked[1]["messages"][2]["content"]) == "on"


def test_no_message_of_a_conversation_is_empty(serve) -> None:
    """Strict servers refuse those. Answers and observations may be empty, and answers become so without reasoning."""
    server = serve(lambda _: answered("<think>Hm.</think>\n" if len(server.asked) == 2 else ""))
    prompter = Chat("gym", Line(), History(), keep_reasoning=False, admissible=False)
    agent = EndpointAgent("m", prompter, Sampling(0.0, 50), base_url=server.url, api_key="none", max_retries=0)
    one = view()
    for seen in ("You are in room 1.", " ", "You are in room 2."):
        one.observation = seen
        (decision,) = agent.act([one])
        one.episode.turns.append(Turn(seen, decision.action, 0.0, ""))
    texts = [message["content"] for message in server.asked[2]["messages"][1:]]
    assert texts == ["You are in room 1.", EMPTY, EMPTY, EMPTY, "You are in room 2."]


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (None, (0, 0, 1)),
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, (0, 0, 1)),
        ({"prompt_tokens": 100, "completion_tokens": None}, (100, 0, 1)),
        (["?"], (0, 0, 1)),
        ({"prompt_tokens": 100, "completion_tokens": 0}, (100, 0, 0)),
    ],
)
def test_tokens_are_counted_if_the_server_reports_them(serve, usage, counted: tuple[int, int, int]) -> None:
    agent = agent_of(serve(lambda _: answered("go left", usage=usage)).url, prices=(1e6, 1e6))
    agent.act([view()])
    known = agent.usage
    assert (known.prompt_tokens, known.completion_tokens, known.uncounted) == counted
    assert (known.requests, known.cost) == (1, counted[0] + counted[1])
    assert ("without 1 requests" in known.describe()) == bool(counted[2])


# -- what is asked for ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 50}),
        ({"seed": 7, "chat_template_kwargs": {"enable_thinking": False}}, {
            "temperature": 0.0, "max_tokens": 50, "seed": 7, "chat_template_kwargs": {"enable_thinking": False},
        }),
        ({"max_completion_tokens": 9}, {"temperature": 0.0, "max_completion_tokens": 9}),
        ({"temperature": None, "max_tokens": None}, {}),
        ({"temperature": 1, "top_p": 0.5}, {"temperature": 1, "top_p": 0.5, "max_tokens": 50}),
    ],
)  # fmt: skip
def test_further_parameters_are_sent_and_override_sampling(serve, parameters: dict, expected: dict) -> None:
    server = serve(lambda _: answered("go left"))
    agent_of(server.url, parameters=parameters).act([view()])
    sent = server.asked[0]
    assert {name: sent[name] for name in sent.keys() - {"model", "messages"}} == expected


def test_truncation_is_sent_unless_sampling_is_greedy(serve) -> None:
    server = serve(lambda _: answered("go left"))
    for temperature in (1.0, 0.0):
        agent = agent_of(server.url)
        agent.sampling = Sampling(temperature, 50, top_p=0.9, min_p=0.1)
        agent.act([view()])
    sent = [{name: asked[name] for name in asked.keys() - {"model", "messages"}} for asked in server.asked]
    assert sent == [
        {"temperature": 1.0, "max_tokens": 50, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 0.0, "max_tokens": 50},
    ]


def test_a_model_with_another_name_of_the_limit_gets_it_with_one_warning(serve, caplog) -> None:
    def reply(request: dict) -> Reply:
        if "max_tokens" in request:
            return refused(
                "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", param="max_tokens"
            )
        return answered("go left")

    server = serve(reply)
    agent = agent_of(server.url)
    for key in range(3):
        assert agent.act([view(2 * key), view(2 * key + 1)])[0].action == "go left"
    assert agent.endpoint.usage.requests == 6
    assert [request.get("max_completion_tokens") for request in server.asked[-4:]] == [50] * 4
    assert caplog.text.count("max_completion_tokens") == 1
    with pytest.raises(EndpointError, match="Unsupported parameter"):  # a parameter of the user stays
        agent_of(server.url, parameters={"max_tokens": 9}).act([view()])


@pytest.mark.parametrize(("role", "roles"), [("developer", ["developer", "user"]), (None, ["user"])])
def test_the_system_prompt_has_the_role_that_the_model_knows(serve, role: str | None, roles: list[str]) -> None:
    server = serve(lambda _: answered("go left"))
    agent = agent_of(server.url, system_role=role)
    agent.act([view()])
    messages = server.asked[0]["messages"]
    assert [message["role"] for message in messages] == roles
    texts = [agent.prompter.system, "You are in room 1."]
    assert [message["content"] for message in messages] == (texts if role else ["\n\n".join(texts)])


def test_requests_run_in_parallel_and_are_returned_in_order(serve) -> None:
    together = threading.Barrier(4, timeout=10)

    def reply(request: dict) -> Reply:
        together.wait()  # passes only when four requests are here at a time
        return answered(request["messages"][-1]["content"])

    views = [view(key) for key in range(8)]
    for key, one in enumerate(views):
        one.observation = f"answer {key}"
    decisions = agent_of(serve(reply).url, concurrency=4).act(views)
    assert [d.action for d in decisions] == [f"answer {key}" for key in range(8)]


# -- what fails -------------------------------------------------------------------------------------------------------
def test_a_request_to_a_busy_server_is_retried(serve) -> None:
    replies = iter([(429, {"Retry-After": "0.01"}, "{}"), (503, {}, "{}"), answered("go left")])
    server = serve(lambda _: next(replies))
    (decision,) = agent_of(server.url, max_retries=2).act([view()])
    assert (decision.action, len(server.asked)) == ("go left", 3)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (refused("bad key", 401), "AuthenticationError.*bad key"),
        (refused("no money", 402), "no money"),
        (refused("not for you", 403), "PermissionDeniedError.*not for you"),
        (refused("no such model", 404), "NotFoundError.*no such model"),
        (refused("unknown parameter: temperature"), "BadRequestError.*temperature"),
        (refused("no such field", 422), "UnprocessableEntityError"),
        ((429, {"Retry-After": "3600"}, "{}"), "RateLimitError.*wait 3600 s"),
        (refused("upstream", 502), "upstream"),
        ((500, {}, "oops"), "InternalServerError"),
        ((200, {}, "<html>hello</html>"), "gave an answer that cannot be read|without a message"),
        ((200, {}, '{"hello": 1}'), "without a message"),
        ((200, {}, '{"choices": []}'), "without a message"),
        ((200, {}, "[1]"), "gave an answer that cannot be read"),
        ((200, {}, '{"choices": [{"message": null}]}'), "without a message"),
        (answered("go left", "error"), "without a message"),
        (refused("unsupported parameter: foo"), "foo"),
        (refused("no such model; see our usage policy on safety"), "usage policy"),  # the same for all conversations
        ((200, {}, "[" * 200_000), "gave an answer that cannot be read"),
    ],
)
def test_an_unreadable_answer_is_a_named_error(serve, reply: Reply, error: str) -> None:
    with pytest.raises(EndpointError, match=error) as raised:
        agent_of(serve(lambda _: reply).url, model="acme/safety-7b").act([view()])  # a name says nothing
    assert "\n" not in str(raised.value)


# What a server says of one conversation, and what its episode ends by.
OF_ONE = [
    (refused("This model's maximum context length is 8192 tokens.", code="context_length_exceeded"), "context_limit"),
    (refused("the request exceeds the available context size", type="exceed_context_size_error"), "context_limit"),
    (refused("`inputs` tokens + `max_new_tokens` must be <= 4096", 422), "context_limit"),
    (refused("prompt is too long: 210000 tokens > 200000 maximum"), "context_limit"),
    ((413, {}, "<html>\n<h1>Payload\nToo Large</h1></html>"), "context_limit"),
    (refused("The response was filtered", code="content_filter"), "refused"),
    (refused("your input was flagged", 403), "refused"),
    (refused("invalid"), "refused"),
    (refused("cannot be processed", 422), "refused"),
    (refused("Jinja exception", 500), "refused"),
    ((200, {}, '{"choices": []}'), "refused"),
    ((200, {}, '{"choices": null, "error": {"message": "blocked"}}'), "refused"),
    ((200, {}, "no json"), "refused"),
]


@pytest.mark.parametrize(("reply", "reason"), OF_ONE)
def test_an_error_of_one_conversation_ends_only_its_episode(serve, reply: Reply, reason: str) -> None:
    """A resumed evaluation takes it as it ended, and asks nothing again."""

    def answer(request: dict) -> Reply:
        if len(request["messages"]) == 2 and request["messages"][1]["content"] == SHORT_QUESTION:
            return answered("ok")
        rooms, last = request["messages"][1]["content"].split(" of ")[1][0], request["messages"][-1]["content"]
        if rooms == "4" and "room 3" in last:
            return reply
        return answered("open door 1" if f"room {rooms}" in last else "go right")

    server, ended = serve(answer), []
    with EnvPool(Corridors().make, 3) as pool:
        agent = agent_of(server.url)
        result = evaluate(agent, Corridors(), "valid", pool, on_episode=ended.append)
        asked = len(server.asked)
        assert evaluate(agent, Corridors(), "valid", pool, played=ended) == result
    assert len(server.asked) == asked
    assert result.stops == {"success": 4, reason: 2}
    (one, other) = (episode for episode in ended if episode.stop_reason == reason)
    assert (len(one.turns), len(other.turns)) == (2, 2)
    assert "\n" not in one.error
    assert one.error.startswith("m at http")


def test_a_server_that_failed_once_is_not_a_refusal(serve) -> None:
    """A conversation is given up only where the server answers others and fails with it again."""
    replies = iter([(500, {}, "oops"), answered("ok"), answered("go left")])
    (decision,) = agent_of(serve(lambda _: next(replies)).url).act([view()])
    assert (decision.action, decision.status) == ("go left", ParseStatus.OK)


def test_an_endpoint_that_is_slow_or_not_reachable_raises(serve) -> None:
    release = threading.Event()

    def stall(_) -> Reply:
        release.wait(10)
        return answered("go left")

    server = serve(stall)
    with pytest.raises(EndpointError, match="APITimeoutError"):
        agent_of(server.url, timeout=0.2).act([view()])
    release.set()
    dead = Server(stall)
    dead.close()
    with pytest.raises(EndpointError, match=r"APIConnectionError|APITimeoutError"):
        agent_of(dead.url, timeout=0.5).act([view()])


def test_a_time_out_of_one_conversation_ends_that_one_alone(serve) -> None:
    release = threading.Event()

    def answer(request) -> Reply:
        if "room 9" in str(request["messages"]):
            release.wait(10)
        return answered("go left")

    agent = agent_of(serve(answer).url, timeout=0.5)
    slow = view(1)
    slow.observation = "You are in room 9."
    first, second = agent.act([view(), slow])
    release.set()
    assert first.action == "go left"
    assert second.stop_reason is StopReason.REFUSED
    assert "APITimeoutError" in second.error


def test_an_evaluation_keeps_the_episodes_that_ended_before_the_endpoint_failed(serve) -> None:
    answers = iter(range(10_000))

    def reply(_) -> Reply:
        return answered("go right") if next(answers) < 12 else (500, {}, "gone")

    ended: list[Episode] = []
    agent = agent_of(serve(reply).url, concurrency=1)
    with EnvPool(Corridors().make, 1) as pool, pytest.raises(EndpointError, match=r"gone|500"):
        evaluate(agent, Corridors(), "valid", pool, on_episode=ended.append)
    assert ended
    assert all(episode.stop_reason for episode in ended)


def test_bad_settings_raise(monkeypatch) -> None:
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
