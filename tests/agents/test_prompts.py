"""Prompts: the transcript appends what was sampled; the template gives GiGPO's text, character for character."""

import pytest
import torch

from agents.chat_templates import ChatTemplateError
from agents.episode import ParseStatus, Turn
from agents.policies.base import Request, Sampling
from agents.prompts import SokobanTemplate, Template, Transcript, WebShopTemplate
from envs.core import UnknownNameError
from tests.agents.toys import random_policy

INFO = {"goal": "open the door", "admissible": ["go left", "help", "open door 1"]}

FIRST = """
You are an expert agent operating in the ALFRED Embodied Environment.
Your current observation is: You are in room 1.
Your admissible actions of the current situation are: ['go left'
 'open door 1'].

Now it's your turn to take an action.
You should first reason step-by-step about the current situation. This reasoning process MUST be enclosed within <think> </think> tags. 
Once you've finished your reasoning, you should choose an admissible action for current step and present it within <action> </action> tags.
"""  # noqa: W291, E501 - the published text has that space

THIRD = """
You are an expert agent operating in the ALFRED Embodied Environment. Your task is to: open the door
Prior to this step, you have already taken 3 step(s). Below are the most recent 2 observaitons and the corresponding actions you took: 
[Observation 2: 'two', Action 2: 'go left']
[Observation 3: 'three', Action 3: 'look']
You are now at step 4 and your current observation is: four
Your admissible actions of the current situation are: ['go left'
 'open door 1'].
"""  # noqa: W291, E501


def turns(*pairs: tuple[str, str]) -> list[Turn]:
    return [Turn(observation, action, 0.0, observation) for observation, action in pairs]


def test_gigpo_prompt_at_the_first_step() -> None:
    assert Template("gigpo_alfworld").render([], "You are in room 1.", INFO) == FIRST


def test_gigpo_prompt_holds_the_last_two_turns() -> None:
    history = turns(("one", "go right"), ("two", "go left"), ("three", "look"))
    assert Template("gigpo_alfworld").render(history, "four", INFO).startswith(THIRD)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<think>so</think><action> Go Left </action>", "go left"),
        ("<action>look</action><action>go</action>", "look"),
        ("go left", None),
        ("<action></action>", None),
    ],
)
def test_the_action_is_the_text_in_its_tags(text: str, action: str | None) -> None:
    assert Template("gigpo_alfworld").parse(text) == action


def test_an_unknown_template_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="gigpo_alfworld"):
        Template("gigpo_alfwrld")


def test_the_transcript_never_encodes_a_completion_again() -> None:
    """Ids that no text encodes to stay as they were sampled; one that was cut off gets its end."""
    tokenizer, prompter = random_policy().tokenizer, Transcript()
    turn = turns(("You are in room 1.", "x"))[0]
    turn.prompt_ids = prompter.prompt_ids(tokenizer, [], turn.observation, INFO)
    turn.completion_ids = [40, 41, 42]
    ids = prompter.prompt_ids(tokenizer, [turn], "You are in room 2.", INFO)
    end = len(turn.prompt_ids) + 3
    assert ids[:end] == [*turn.prompt_ids, 40, 41, 42]
    assert tokenizer.decode(ids[end:]) == "<eos>You are in room 2.<act>"
    assert tokenizer.decode(ids[:1]) == "<bos>"


@pytest.mark.parametrize("seen", ["You are in room 1.", ""])
def test_a_transcript_without_a_token_that_begins_it_begins_with_the_observation(seen: str) -> None:
    policy, prompter = random_policy(), Transcript()
    policy.tokenizer.bos_token = None
    ids = prompter.prompt_ids(policy.tokenizer, [], seen, INFO)
    assert policy.tokenizer.decode(ids) == f"{seen}<act>"
    (done,) = policy.generate([Request(0, ids)], Sampling(), torch.Generator())
    turn = turns((seen, "go left"))[0]
    turn.prompt_ids, turn.completion_ids = ids, done.ids
    again = prompter.prompt_ids(policy.tokenizer, [turn], "You are in room 2.", INFO)
    assert again[: len(ids) + len(done.ids)] == [*ids, *done.ids]


@pytest.mark.parametrize("prompter", [Transcript(), Template("gigpo_alfworld")])
def test_a_tokenizer_without_an_end_token_raises(prompter) -> None:
    tokenizer = random_policy().tokenizer
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-sequence"):
        prompter.action_ids(tokenizer, "go left")


def test_a_template_that_fails_is_named() -> None:
    tokenizer = random_policy().tokenizer
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(ChatTemplateError, match="fails: no such role"):
        Template("gigpo_alfworld").prompt_ids(tokenizer, [], "You are in room 1.", INFO)


def test_a_transcript_has_each_of_its_marks_once() -> None:
    """One beginning, a request before each answer and an end behind it: what a policy that ends its answers leaves."""
    tokenizer, prompter = random_policy().tokenizer, Transcript()
    past: list[Turn] = []
    for number in range(1, 4):
        ids = prompter.prompt_ids(tokenizer, past, f"You are in room {number}.", INFO)
        text = "<eos>".join(f"You are in room {n}.<act>{'go left' if n < number else ''}" for n in range(1, number + 1))
        assert tokenizer.decode(ids) == f"<bos>{text}"
        turn = turns((f"You are in room {number}.", "go left"))[0]
        turn.prompt_ids, turn.completion_ids = ids, prompter.action_ids(tokenizer, "go left")
        past.append(turn)


@pytest.mark.parametrize("prompter", [Transcript(), Template("gigpo_alfworld"), WebShopTemplate(), SokobanTemplate()])
def test_a_demonstration_ends_once_as_a_completion_does(prompter) -> None:
    tokenizer = random_policy().tokenizer
    ids = prompter.action_ids(tokenizer, "go left")
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.decode(ids[:-1]) == prompter.write("go left")


def test_a_transcript_shows_the_brief_observation() -> None:
    tokenizer = random_policy().tokenizer
    info = {"goal": "", "admissible": None}
    shown = Transcript().prompt_ids(tokenizer, [], "a long page", {**info, "brief": "look"})
    assert shown == Transcript().prompt_ids(tokenizer, [], "look", info)
    assert shown != Transcript().prompt_ids(tokenizer, [], "a long page", info)


SEARCH = """
You are an expert autonomous agent operating in the WebShop e‑commerce environment. 
Your task is to: buy red shoes.
Your current observation is: 'Search'.
Your admissible actions of the current situation are: 
[
'search[<your query>]',
'click[search]',
].

Now it's your turn to take one action for the current step.
"""  # noqa: W291 - the published text has these spaces

RESULTS = """
You are an expert autonomous agent operating in the WebShop e‑commerce environment.
Your task is to: buy red shoes.
Prior to this step, you have already taken 3 step(s). Below are the most recent 2 observations and the corresponding actions you took: [Observation 2: 'two', Action 2: 'click[b]']
[Observation 3: ''Back to Search' [SEP] 'three'', Action 3: '']
You are now at step 4 and your current observation is: 'Back to Search' [SEP] 'four'.
Your admissible actions of the current situation are: 
[
'click[back to search]',
].

Now it's your turn to take one action for the current step.
"""  # noqa: W291, E501


def page(*parts: str) -> str:
    return " [SEP] ".join(["Instruction:", "buy red shoes", *parts])


def test_the_webshop_prompt_quotes_what_stands_after_the_task() -> None:
    prompter, goal = WebShopTemplate(), "buy red shoes"
    info = {"goal": goal, "admissible": ["search[<your query>]"]}
    assert prompter.render([], "WebShop [SEP] " + page("Search"), info).startswith(SEARCH)
    past = turns(("one", "search[red]"), ("two", "click[b]"), (page("Back to Search", "three"), ""))
    info["admissible"] = ["click[back to search]"]
    assert prompter.render(past, page("Back to Search", "four"), info).startswith(RESULTS)


def test_a_webshop_prompt_that_is_too_long_does_without_its_history() -> None:
    past = turns((page("x" * 13_000), "click[next >]"))
    text = WebShopTemplate().render(past, page("Search"), {"goal": "buy red shoes", "admissible": []})
    assert "Prior to this step" not in text
    assert "Your current observation is: 'Search'." in text


@pytest.mark.parametrize(
    ("text", "action", "valid"),
    [
        ("<think>so</think><action> Click[RED] </action>", "click[red]", True),
        ("<think>so</think><action>fly</action>", "fly", True),
        ("<action>click[red]</action>", "click[red]", False),
        ("<THINK>so</THINK><action>click[red]</action>", "click[red]", False),
        ("<think>我想</think><action>click[red]</action>", "click[red]", False),
        ("<think>so</think> I would rather CLICK[BUY NOW]", "ather click[buy now]", False),
        ("</action><think></think><action>click[red]", "", True),
    ],
)
def test_webshop_answers_are_read_as_verl_agent_does(text: str, action: str, valid: bool) -> None:
    info = {"goal": "", "admissible": ["click[red]"]}
    played, status = WebShopTemplate().read(text, True, info)
    assert (played, status is ParseStatus.OK) == (action, valid)


@pytest.mark.parametrize(
    ("action", "status"),
    [
        ("search[red shoes]", ParseStatus.OK),
        ("search[]", ParseStatus.OK),
        ("click[next >]", ParseStatus.OK),
        ("search red shoes", ParseStatus.ILLEGAL),
        ("click[red shoes]", ParseStatus.ILLEGAL),
    ],
)
def test_an_admissible_action_may_have_a_slot_for_any_text(action: str, status: ParseStatus) -> None:
    info = {"goal": "", "admissible": ["search[<your query>]", "click[< prev]", "click[next >]"]}
    assert Transcript().read(action, True, info) == (action, status)
