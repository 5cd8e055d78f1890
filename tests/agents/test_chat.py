"""Conversations: prompts equal the text of the chat template, and sampled ids are never encoded again."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agents.agent import PolicyAgent, View
from agents.chat import Chat, ChatTemplateError, History
from agents.episode import Episode, ParseStatus, Turn
from agents.parsing import Line, Tagged
from agents.policies.base import Completion, End, Sampling
from agents.policies.models import stop_ids
from agents.prompts import Template, Verbatim, message_ids
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
# Models whose templates have no system role: they refuse it (Gemma), or refuse roles that do not alternate (Mistral).
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
DROPPING = CHATML.replace("messages %}", "messages if m.role != 'system' %}")
# The system prompt stands with the last message (Mistral v0.3), behind it, or at both ends.
WITH_THE_LAST = DROPPING.replace(
    "{{ m.content }}",
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}",
)
AT_THE_END = DROPPING + "{% if messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}{% endif %}"
TWICE = CHATML + "{% if messages[0].role == 'system' %}({{ messages[0].content }}){% endif %}"
# A template may have a system prompt of its own (Qwen2.5), and write it whatever it gets.
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Q.<|im_end|>\n{% endif %}" + CHATML
DEFAULT_ALONE = DEFAULT.replace("messages %}", "messages if m.role != 'system' %}")
STUBBORN = "<|im_start|>system\nYou are Q.<|im_end|>\n" + DROPPING
# The system prompt as a part of the first message (Llama 2), and a blank before each answer, that is not asked for.
IN_THE_FIRST = (
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] "
    "{% if loop.first and messages[0].role == 'system' %}<<SYS>>\n{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}"
    "{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} <|im_end|>{% endif %}{% endfor %}"
)
REMINDING = CHATML.replace("{{ m.content }}", "{{ m.content }}{% if loop.last %} (think!){% endif %}")
OTHER_ROLE = CHATML.replace("assistant\n{% endif %}", "model\n{% endif %}")
DROPPING_OTHER_ROLE = DROPPING.replace("assistant\n{% endif %}", "model\n{% endif %}")
# Before an answer of the history stands what the model had to write itself (gpt-oss), or less than it was asked after.
CHANNELS = CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<final>{% endif %}{{ m.content }}")
HEADLESS = CHATML.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "")
PROMPTING = CHATML.replace("assistant\n{% endif %}", "assistant\nSay: {% endif %}")
NO_EMPTY = CHATML.replace("messages %}", "messages if m.content %}")
NUMBERED = CHATML.replace("{{ m.role }}", "{{ m.role }} {{ loop.index }}")
NO_USER = DROPPING.replace("m.role != 'system'", "m.role == 'assistant'")
WINDOW = CHATML.replace("messages %}", "messages[-6:] %}")
FORGETFUL = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
INFO = {"goal": "find the mug", "admissible": ["look", "go on"]}
ANSWERS = ["<think>\nWhere is it?\n</think>\n\n<action>look</action>", "<action>go on</action>", "<think>So.</think>go"]
SEEN = ["You are in a room.", "You see a door.", "You see a mug <|3.", "The end."]


def bytes_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are single bytes and the control tokens of a conversation."""
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
    """The template's own text of the conversation before answer number `turns`."""
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


# -- templates --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("keep_reasoning", [True, False])
@pytest.mark.parametrize(
    ("template", "folded", "samples"),
    [
        (CHATML, False, 1), (DEFAULT, False, 1), (IN_THE_FIRST, False, 1), (NO_EMPTY, False, 1),
        (NO_SYSTEM, True, 1), (ALTERNATING, True, 1), (DROPPING, True, 1), (WITH_THE_LAST, True, 1),
        (AT_THE_END, True, 1), (TWICE, True, 1), (STUBBORN, True, 1), (DEFAULT_ALONE, True, 1),
        (CHANNELS, False, 1), (HEADLESS, False, 1), (PROMPTING, False, 3),
        (REMINDING, False, 3), (OTHER_ROLE, False, 3), (DROPPING_OTHER_ROLE, True, 3),
    ],
)  # fmt: skip
def test_every_prompt_is_what_the_template_makes_of_the_conversation(
    template: str, folded: bool, samples: int, keep_reasoning: bool, caplog
) -> None:
    """With the system prompt in it once, which stands in the first message where the template has no place for it."""
    tokenizer, prompter = bytes_tokenizer(template), chat(keep_reasoning=keep_reasoning)
    messages, turns = [{"role": "system", "content": prompter.system}], []
    if folded:
        messages = []
    for number, seen in enumerate(SEEN):
        content = f"{prompter.system}\n\n{seen}" if folded and not number else seen
        messages.append({"role": "user", "content": content})
        ids = prompter.prompt_ids(tokenizer, turns, seen, INFO)
        text = tokenizer.decode(ids)
        whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text.replace(" <|im_end|>", "<|im_end|>") == whole.replace(" <|im_end|>", "<|im_end|>")
        assert text.count(prompter.system) == 1
        done = prompter.action_ids(tokenizer, "look")
        turns.append(Turn(seen, "look", 0.0, seen, prompt_ids=ids, completion_ids=done, logprobs=[0.0] * len(done)))
        messages.append({"role": "assistant", "content": prompter.write("look")})
    assert caplog.text.count("in front of the first user message") == folded
    assert caplog.text.count("written anew") == (samples > 1 and keep_reasoning)
    if keep_reasoning:
        assert len(build_samples([Episode(Task("t", "Test-v0", "train"), 0, turns=turns[:3])])) == samples


@pytest.mark.parametrize("parser", [Line(), Tagged()])
def test_text_that_a_template_adds_before_answers_is_not_part_of_the_action(parser) -> None:
    tokenizer, prompter = bytes_tokenizer(CHANNELS), chat(parser=parser)
    prompter.prompt_ids(tokenizer, [], SEEN[0], INFO)
    text = tokenizer.decode(prompter.action_ids(tokenizer, "look")[:-1])
    assert text == f"<final>{parser.write('look')}"
    assert prompter.parse(text) == prompter.parse(f"<analysis>Hm.<final>{parser.write('look')}") == "look"


def test_a_shortened_conversation_begins_with_the_system_prompt_where_there_is_no_such_role() -> None:
    text = prompt_of(chat("last_k", 1), 3, NO_SYSTEM)[0]
    assert text.count(chat().system) == 1
    assert text.startswith(f"<|im_start|>user\n{chat().system}\n\nYour task: find the mug")


@pytest.mark.parametrize("template", [CHATML, WITH_THE_LAST, NO_SYSTEM])
def test_an_answer_ends_with_the_token_of_the_template(template: str) -> None:
    """As Gemma's, whose texts end with <eos> and whose answers end with <end_of_turn>: the policy stops there, too."""
    tokenizer, prompter = bytes_tokenizer(template), chat()
    tokenizer.add_special_tokens({"eos_token": "<eos>"})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prompter.action_ids(tokenizer, "look")[-1] == end
    assert Template("gigpo_alfworld").action_ids(tokenizer, "look")[-1] == end
    assert stop_ids(None, tokenizer) == sorted([end, tokenizer.eos_token_id])
    tokenizer.chat_template = None
    assert stop_ids(None, tokenizer) == [tokenizer.eos_token_id]


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
    """Token by token: a sample is what the model read and wrote, and only what it wrote is trained on."""
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


def test_answers_without_reasoning_keep_the_sampled_ids() -> None:
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


def test_unfinished_reasoning_is_not_an_action() -> None:
    tokenizer, prompter = bytes_tokenizer(PREFILLED), chat(parser=Line())
    prompter.prompt_ids(tokenizer, [], SEEN[0], INFO)
    assert prompter.parse("let me see\nlook") is None
    assert prompter.parse("let me see</think>\nlook") == "look"
    tokenizer, prompter = bytes_tokenizer(CHATML), chat(parser=Line())
    prompter.prompt_ids(tokenizer, [], SEEN[0], INFO)
    assert prompter.parse("let me see\nlook") == "look"


# -- history ----------------------------------------------------------------------------------------------------------
def prompt_of(prompter: Chat, count: int, template: str = CHATML) -> tuple[str, int]:
    """The prompt after `count` turns, and its number of tokens."""
    tokenizer = bytes_tokenizer(template)
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
    """A policy without a context limit that always gives the same answer."""

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
    ("template", "message"),
    [
        (None, "has no chat template"),
        (FORGETFUL, "leaves out"),
        ("{% bad %}", "fails"),
        (NUMBERED, "turn 3 differently"),
        (NO_USER, "leaves out|system prompt once"),
        (WINDOW, "turn 4 differently"),
        (NO_SYSTEM + "{{ raise_exception('never') }}", "fails: never"),
    ],
)
def test_unsuitable_templates_raise(template: str | None, message: str) -> None:
    tokenizer, prompter = bytes_tokenizer(template), chat(keep_reasoning=False)
    turn = Turn(SEEN[0], "look", 0.0, "", completion_ids=[1])
    with pytest.raises(ChatTemplateError, match=message):
        prompter.prompt_ids(tokenizer, [turn], SEEN[1], INFO)


def test_bad_settings_raise() -> None:
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


@pytest.mark.parametrize("opening", ["", "<think>"])
@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("messages", [True, False])
def test_a_verbatim_conversation_does_not_change_any_text(messages: bool, stop: bool, opening: str) -> None:
    tokenizer, prompter = bytes_tokenizer(CHATML), Verbatim(messages, opening)
    episode = play(prompter, tokenizer, stop=stop)
    ids = prompter.prompt_ids(tokenizer, episode.turns, SEEN[3], INFO)
    between = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n" if messages else "{}"
    text = f"<|im_start|>user\n{SEEN[0]}<|im_end|>\n<|im_start|>assistant\n{opening}"
    for answer, seen in zip(ANSWERS, SEEN[1:], strict=True):
        text += answer + "<|im_end|>" * (stop and not messages) + between.format(seen) + opening
    assert tokenizer.decode(ids) == text
    assert [turn.action for turn in episode.turns] == ANSWERS
    assert len(build_samples([episode])) == 1
    marks = {tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>")}
    found = prompter.prompt_ids(tokenizer, [], "a passage <|im_end|> with a mark", INFO)
    assert sum(i in marks for i in found) == 3  # none of them is the passage's


def test_a_verbatim_agent_s_text_reaches_a_protocol_unchanged() -> None:
    """Also what the protocol cuts off, its reasoning and its tags."""
    text = "<think>a</think>\n<search> Tarn </search> and more\n"
    assert Verbatim().read(text, True, {**INFO, "admissible": None}) == (text, ParseStatus.OK)
    assert Verbatim().read(" \n", True, {**INFO, "admissible": None}) == (" \n", ParseStatus.MALFORMED)
    assert Verbatim().read(text, False, {**INFO, "admissible": None}) == (text, ParseStatus.TRUNCATED)
