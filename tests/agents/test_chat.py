"""Conversations: what the model sees is its template's text, and what it sampled is never encoded again."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agents.agent import PolicyAgent, View
from agents.chat import Chat, ChatTemplateError, History
from agents.episode import Episode, ParseStatus, Turn
from agents.parsing import Line, Tagged
from agents.policies.base import Completion, End, Sampling
from agents.prompts import message_ids
from agents.samples import build_samples
from envs.core import Task, UnknownNameError
from tests.agents.toys import random_policy

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As those of reasoning models do, it shows earlier answers without their reasoning.
STRIPPING = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1].lstrip('\n') }}")
PREFILLED = STRIPPING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
FORGETFUL = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
INFO = {"goal": "find the mug", "admissible": ["look", "go on"]}
ANSWERS = ["<think>\nWhere is it?\n</think>\n\n<action>look</action>", "<action>go on</action>", "<think>So.</think>go"]
SEEN = ["You are in a room.", "You see a door.", "You see a mug <|3.", "The end."]


def bytes_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Every byte is a token, and so are the marks of a conversation."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    return tokenizer


def chat(kind: str = "full", turns: int | None = None, max_tokens: int | None = None, **options) -> Chat:
    options = {"parser": Tagged(), "admissible": False, **options}
    return Chat("gym", history=History(kind, turns, max_tokens), **options)


def play(prompter: Chat, tokenizer, answers=ANSWERS, stop: bool = True) -> Episode:
    """An episode in which the model gives these answers."""
    episode = Episode(Task("t", "Test-v0", "train"), 0)
    for seen, answer in zip(SEEN, answers, strict=False):
        prompt = prompter.prompt_ids(tokenizer, episode.turns, seen, INFO)
        ids = tokenizer.encode(answer, add_special_tokens=False) + [tokenizer.eos_token_id] * stop
        action = prompter.parse(answer) or ""
        turn = Turn(seen, action, 0.0, seen, prompt_ids=prompt, completion_ids=ids, logprobs=[-1.0] * len(ids))
        episode.turns.append(turn)
    return episode


def rendered(prompter: Chat, tokenizer, turns: int) -> str:
    """What the template itself makes of the conversation before the answer number `turns`."""
    messages = [{"role": "system", "content": prompter.system}]
    for seen, answer in zip(SEEN[:turns], ANSWERS[:turns], strict=True):
        messages += [{"role": "user", "content": seen}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": SEEN[turns]})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_a_conversation_is_the_template_s_text_and_one_growing_sequence() -> None:
    tokenizer, prompter = bytes_tokenizer(CHATML), chat()
    episode = play(prompter, tokenizer)
    for number, turn in enumerate(episode.turns):
        assert tokenizer.decode(turn.prompt_ids) == rendered(prompter, tokenizer, number)
    (sample,) = build_samples([episode])
    sampled = [i for turn in episode.turns for i in turn.completion_ids]
    assert [i for i, on in zip(sample.ids, sample.mask, strict=True) if on] == sampled
    assert sample.ids == [*episode.turns[-1].prompt_ids, *episode.turns[-1].completion_ids]


def test_a_demonstration_ends_once_and_so_does_its_answer_in_the_next_prompt() -> None:
    tokenizer, prompter = bytes_tokenizer(CHATML), chat()
    ids = prompter.action_ids(tokenizer, "go on")
    assert tokenizer.decode(ids) == f"{prompter.write('go on')}<|im_end|>"
    turn = Turn(SEEN[0], "go on", 0.0, "", prompt_ids=prompter.prompt_ids(tokenizer, [], SEEN[0], INFO))
    turn.completion_ids = ids
    text = tokenizer.decode(prompter.prompt_ids(tokenizer, [turn], SEEN[1], INFO))
    assert text.count("<|im_end|>") == 4  # of the system, of two messages and of the answer
    assert text.count("<|im_start|>assistant") == 2


@pytest.mark.parametrize("template", [STRIPPING, PREFILLED])
def test_stripped_reasoning_gives_several_exact_samples(template: str) -> None:
    """Token by token: each sample is what the model saw and then said, and only what it said then is trained on."""
    tokenizer, prompter = bytes_tokenizer(template), chat(keep_reasoning=False)
    answers = [a.removeprefix("<think>\n") for a in ANSWERS] if template == PREFILLED else ANSWERS
    answers[1] = (
        "<think>b</think><action>go on</action>" if template == STRIPPING else "b</think><action>go on</action>"
    )
    episode = play(prompter, tokenizer, answers)
    shown = ["<action>look</action>", "<action>go on</action>"]
    for number, turn in enumerate(episode.turns):
        messages = [{"role": "system", "content": prompter.system}]
        for seen, answer in zip(SEEN[:number], shown[:number], strict=True):
            messages += [{"role": "user", "content": seen}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": SEEN[number]})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(turn.prompt_ids) == text
    samples = build_samples([episode])
    assert len(samples) == 3
    for row, (sample, turn) in enumerate(zip(samples, episode.turns, strict=True)):
        assert sample.ids == turn.prompt_ids + turn.completion_ids
        assert sample.mask == [False] * len(turn.prompt_ids) + [True] * len(turn.completion_ids)
        assert sample.turn == [-1] * len(turn.prompt_ids) + [row] * len(turn.completion_ids)


def test_stripped_answers_are_the_sampled_ids_not_new_ones() -> None:
    """A model may spell an answer otherwise than its tokenizer would; history shows what it sampled."""
    tokenizer, prompter = bytes_tokenizer(STRIPPING), chat(keep_reasoning=False)
    tokenizer.add_tokens(["look"])
    odd = [i for c in "<think>x</think>look" for i in tokenizer.encode(c, add_special_tokens=False)]
    assert odd[-1:] != tokenizer.encode("look", add_special_tokens=False)
    turn = Turn(SEEN[0], "look", 0.0, "", completion_ids=[*odd, tokenizer.eos_token_id])
    ids = prompter.prompt_ids(tokenizer, [turn], SEEN[1], INFO)
    wanted = [*odd[-4:], tokenizer.eos_token_id]
    assert any(ids[i : i + 5] == wanted for i in range(len(ids)))


@pytest.mark.parametrize("keep_reasoning", [True, False])
def test_an_answer_that_was_cut_off_is_ended_by_the_next_prompt(keep_reasoning: bool) -> None:
    tokenizer, prompter = bytes_tokenizer(STRIPPING), chat(keep_reasoning=keep_reasoning)
    episode = play(prompter, tokenizer, ["loo", "k"], stop=False)
    assert tokenizer.decode(episode.turns[1].prompt_ids).count("loo<|im_end|>\n<|im_start|>user") == 1


def test_reasoning_without_end_is_no_action() -> None:
    tokenizer, prompter = bytes_tokenizer(PREFILLED), chat(parser=Line())
    prompter.prompt_ids(tokenizer, [], SEEN[0], INFO)
    assert prompter.parse("let me see\nlook") is None
    assert prompter.parse("let me see</think>\nlook") == "look"
    tokenizer, prompter = bytes_tokenizer(CHATML), chat(parser=Line())
    prompter.prompt_ids(tokenizer, [], SEEN[0], INFO)
    assert prompter.parse("let me see\nlook") == "look"


# -- history ----------------------------------------------------------------------------------------------------------
def prompt_of(prompter: Chat, count: int) -> tuple[str, int]:
    """What the model sees after `count` turns, and how many tokens that is."""
    tokenizer = bytes_tokenizer(CHATML)
    turns = [
        Turn(f"observation {i}", f"action {i}", 0.0, "", completion_ids=tokenizer.encode(f"answer {i}<|im_end|>"))
        for i in range(count)
    ]
    ids = prompter.prompt_ids(tokenizer, turns, "now", INFO)
    return tokenizer.decode(ids), len(ids)


def text_of(prompter: Chat, count: int) -> str:
    return prompt_of(prompter, count)[0]


def test_last_k_shows_the_goal_and_the_last_turns() -> None:
    text = text_of(chat("last_k", 2), 5)
    assert "Your task: find the mug\n(3 earlier turns are not shown.)\n\nobservation 3<|im_end|>" in text
    assert [f"answer {i}" in text for i in range(5)] == [False, False, False, True, True]
    assert "not shown" not in text_of(chat("last_k", 2), 2)
    assert "answer 1" not in text_of(chat("last_k", 0), 2)


def test_summary_has_a_line_for_each_turn_that_is_not_shown() -> None:
    text = text_of(chat("summary", 1), 3)
    lines = "What you did before:\n1. observation 0 → action 0\n2. observation 1 → action 1\n\nobservation 2<|im_end|>"
    assert lines in text
    assert "answer 2" in text
    assert "answer 1" not in text


def test_a_budget_shows_fewer_turns_rather_than_none() -> None:
    _, whole = prompt_of(chat("last_k", 5), 5)
    text, length = prompt_of(chat("last_k", 5, max_tokens=whole - 1), 5)
    assert length < whole
    assert "observation 0" not in text
    assert "observation 4" in text


class Endless:
    """A policy with room for any prompt, which says the same thing again and again."""

    context_length = 10_000

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    def generate(self, requests, sampling, generator) -> list[Completion]:
        ids = self.tokenizer.encode("<action>look</action><|im_end|>")
        return [Completion(ids, [0.0] * len(ids), End.TOKEN) for _ in requests]

    def release(self, session: int) -> None: ...


@pytest.mark.parametrize("kind", ["full", "last_k"])
def test_a_prompt_beyond_the_budget_ends_the_episode(kind: str) -> None:
    tokenizer = bytes_tokenizer(CHATML)
    fits = len(chat().prompt_ids(tokenizer, [], SEEN[0], INFO))
    for budget, status in ((fits, ParseStatus.OK), (fits - 1, None)):
        prompter = chat(kind, None if kind == "full" else 1, budget)
        agent = PolicyAgent(Endless(tokenizer), prompter, Sampling(), torch.Generator())
        (decision,) = agent.act([View(0, Episode(Task("t", "Test-v0", "train"), 0), SEEN[0], INFO)])
        assert decision.status is status


def test_admissible_actions_stand_with_the_newest_message() -> None:
    text = text_of(chat(admissible=True, keep_reasoning=False), 2)
    assert text.count("Possible now: look; go on") == 1
    assert "now\n\nPossible now" in text


# -- errors -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("template", "said"),
    [(None, "has no chat template"), (NO_SYSTEM, "no system role"), (FORGETFUL, "leaves out"), ("{% bad %}", "fails")],
)
def test_templates_that_do_not_serve_are_told(template: str | None, said: str) -> None:
    tokenizer, prompter = bytes_tokenizer(template), chat(keep_reasoning=False)
    turn = Turn(SEEN[0], "look", 0.0, "", completion_ids=[1])
    with pytest.raises(ChatTemplateError, match=said):
        prompter.prompt_ids(tokenizer, [turn], SEEN[1], INFO)


def test_bad_settings_are_told() -> None:
    with pytest.raises(UnknownNameError, match="gym"):
        Chat("gimm", Tagged(), History())
    with pytest.raises(UnknownNameError, match="last_k"):
        History("last")
    with pytest.raises(ValueError, match="number of turns"):
        History("last_k")
    with pytest.raises(ValueError, match="all turns"):
        History("full", 3)
    with pytest.raises(ValueError, match="at least 0"):
        History("last_k", -1)


def test_templates_that_write_the_date_write_the_same_one_every_day() -> None:
    tokenizer = random_policy().tokenizer
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} " + CHATML
    written = tokenizer.decode(
        Chat("gym", Tagged(), History()).prompt_ids(tokenizer, [], "a room", {"goal": "", "admissible": None})
    )
    assert "26 Jul 2024" in written
    assert "26 Jul 2024" in tokenizer.decode(message_ids(tokenizer, "a room", around=False))
