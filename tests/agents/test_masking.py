"""An agent that can write only admissible actions, and its log-probabilities for training."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agents.agent import View
from agents.chat import Chat, History
from agents.episode import Episode, ParseStatus, Turn
from agents.masking import ActionForm, Mask, MaskedAgent, Node
from agents.parsing import Json, Line, Tagged, fits, has_slot
from agents.policies.base import End, Request, Sampling
from agents.policies.local import LocalPolicy
from agents.policies.tiny import build_model
from agents.prompts import Prompter, Template, Transcript
from agents.rollout import Job, rollout
from agents.samples import Sample, build_samples
from agents.scripted import RandomAgent
from algorithms import batches
from algorithms.batches import make_batch, sampled_logprobs
from algorithms.learner import Learner, Portion, engine_logprobs
from algorithms.turn_table import TurnTable
from envs.pool import EnvPool
from tests.agents.corridors import Corridors, corridor
from tests.agents.toys import random_policy
from tests.algorithms.test_trainer import learner_config

WHOLE = ["go to desk 1", "go to desk 10", "go to desk 10 now", "look", "open door 1", "go right"]
ACTIONS = [*WHOLE, "search[<your query>]"]
INFO = {"goal": "open the door", "admissible": ACTIONS}
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHANNELS = TEMPLATE.replace(
    "{{ m.content }}", "{% if m.role == 'assistant' %}<channel>final<message>{% endif %}{{ m.content }}"
)


def bytes_policy(seed: int = 0, *, words: list[str] | None = None, template: str = TEMPLATE) -> LocalPolicy:
    """A model of bytes, with a chat template; `words` become ids of their own by merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [pair for word in words or [] for pair in _merges(word)]
    vocabulary = list(dict.fromkeys(["<end>", "<bos>", *alphabet, *(a + b for a, b in merges)]))
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", bos_token="<bos>")
    tokenizer.chat_template = template
    if template is CHANNELS:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<channel>", "<message>"]})
    model = build_model(len(vocabulary) + 6, width=16, layers=2, heads=2, feed_forward=32, context=4096, seed=seed)
    return LocalPolicy(model, tokenizer)


def _merges(word: str) -> list[tuple[str, str]]:
    return [(word[:i], word[i]) for i in range(1, len(word))]


CHAT = Chat("alfworld", Tagged(), History())
FORMS: dict[str, tuple[Prompter, LocalPolicy]] = {
    "transcript": (Transcript(), random_policy()),
    "bytes": (Transcript(), bytes_policy(words=["search[", "search[r", "go", "ok"])),
    "template": (Template("gigpo_alfworld"), bytes_policy()),
    "merged": (Template("gigpo_alfworld"), bytes_policy(words=["<action>go", "]<", "1<"])),
    "tagged": (CHAT, bytes_policy()),
    "line": (Chat("alfworld", Line(), History()), bytes_policy()),
    "json": (Chat("alfworld", Json(), History()), bytes_policy()),
    "channel": (Chat("alfworld", Tagged(), History()), bytes_policy(template=CHANNELS)),
    "channel, line": (Chat("alfworld", Line(), History()), bytes_policy(template=CHANNELS)),
}


class AfterHead:
    """A mask where what stands before the action is written already: an untrained model would seldom write it."""

    def __init__(self, mask: Mask, head: list[int]) -> None:
        self.mask, self.head, self.first = mask, head, mask.first
        for count in range(1, len(head) + 1):
            self.first = mask.follow(self.first, head[:count])

    def follow(self, node: Node, ids: list[int]) -> Node | None:
        return self.mask.follow(node, [*self.head, *ids])


@dataclass
class State:
    """A policy before its first action, with the head of the form in its prompt."""

    prompter: Prompter
    policy: LocalPolicy
    form: ActionForm
    prompt: list[int]
    mask: AfterHead


def state(name: str, actions: list[str]) -> State:
    prompter, policy = FORMS[name]
    prompt = prompter.prompt_ids(policy.tokenizer, [], "Where?", {**INFO, "admissible": actions})
    form = ActionForm(prompter, policy.tokenizer)
    head = [*form.lead, *policy.tokenizer.encode(form.head, add_special_tokens=False)]
    return State(prompter, policy, form, [*prompt, *head], AfterHead(form.mask(actions), head))


def sample_of(at: State, ids: list[int], nodes: list[Node]) -> Sample:
    made = Sample()
    made.extend(at.prompt)
    made.extend(ids, [0.0] * len(ids), 0, nodes)
    return made


def trained_logprobs(at: State, samples: list[Sample], temperature: float = 1.0) -> list[torch.Tensor]:
    """The log-probabilities in training of each completion: [C] for each sample."""
    batch = make_batch(samples, torch.device("cpu"))
    said, _ = sampled_logprobs(at.policy.model, batch, temperature, torch.float32)
    return [row[mask].detach() for row, mask in zip(said, batch.mask, strict=True)]


def paths(node: Node | None, ids: list[int], nodes: list[Node]) -> Iterator[tuple[list[int], list[Node]]]:
    """All completions below a node without free text."""
    if node is None:
        yield ids, nodes
        return
    assert node.free is None
    for token, child in node.children.items():
        yield from paths(child, [*ids, token], [*nodes, node])


@pytest.mark.parametrize("name", list(FORMS))
def test_the_probabilities_of_all_admissible_actions_add_up_to_1(name: str) -> None:
    at = state(name, WHOLE)
    all_paths = list(paths(at.mask.first, [], []))
    assert len(all_paths) == len(WHOLE)
    scores = trained_logprobs(at, [sample_of(at, ids, nodes) for ids, nodes in all_paths])
    assert sum(float(row.double().sum().exp()) for row in scores) == pytest.approx(1.0, abs=1e-6)
    assert len({round(float(row.sum()), 4) for row in scores}) == len(WHOLE)  # and they differ


@pytest.mark.parametrize("name", list(FORMS))
@pytest.mark.parametrize("keeps", [True, False])
def test_samples_are_admissible_and_training_gives_them_the_same_log_probabilities(name: str, keeps: bool) -> None:
    at, generator, sampling = state(name, ACTIONS), torch.Generator().manual_seed(0), Sampling(0.7, 12)
    seen = set()
    for session in range(40):
        if not keeps:
            at.policy.pause()
        (done,) = at.policy.generate([Request(session % 3, at.prompt, at.mask)], sampling, generator)  # type: ignore[arg-type]
        text = at.prompter.parse(f"{at.form.head}{at.policy.tokenizer.decode(done.text_ids)}")
        if done.end is End.LENGTH:
            assert len(done.ids) >= 12  # free text is cut off, and nothing else
        else:
            assert text in WHOLE or re.fullmatch(r"search\[.+\]", text or "")
            seen.add(text if text in WHOLE else "search")
        (trained,) = trained_logprobs(at, [sample_of(at, done.ids, done.nodes)], 0.7)
        torch.testing.assert_close(torch.tensor(done.logprobs), trained, atol=1e-5, rtol=0)
        forced = [node.forced is not None for node in done.nodes]
        assert any(forced) or done.end is End.LENGTH
        assert all(logprob == 0 for logprob, on in zip(done.logprobs, forced, strict=True) if on)
    assert len(seen) >= 4


@pytest.mark.parametrize("name", list(FORMS))
def test_a_demonstration_is_on_a_path_of_the_mask(name: str) -> None:
    prompter, policy = FORMS[name]
    form = ActionForm(prompter, policy.tokenizer)
    for action in [*WHOLE, "search[red shoes]"]:
        ids = form.action_ids(action, ACTIONS)
        assert len(form.mask(ACTIONS).path(ids)) == len(ids)
        assert prompter.parse(policy.tokenizer.decode(ids[:-1])) == action
    with pytest.raises(ValueError, match="is masked"):
        form.mask(WHOLE).path(form.action_ids("go left", [*WHOLE, "go left"]))


def test_gradients_are_those_of_the_masked_distribution() -> None:
    """Against finite differences, in float64."""
    at = state("bytes", ACTIONS)
    model = copy.deepcopy(at.policy.model).double()
    (done,) = at.policy.generate([Request(0, at.prompt, at.mask)], Sampling(1.0, 12), torch.Generator().manual_seed(3))  # type: ignore[arg-type]
    batch = make_batch([sample_of(at, done.ids, done.nodes)], torch.device("cpu"))

    def objective() -> torch.Tensor:
        logprobs, entropies = sampled_logprobs(model, batch, 1.0, torch.float32, entropy_gradient=True)
        return logprobs.sum() + 0.3 * entropies.sum()

    objective().backward()
    rng = np.random.default_rng(0)
    for weight in [model.get_input_embeddings().weight, model.model.layers[1].mlp.up_proj.weight]:
        for _ in range(5):
            place = tuple(int(rng.integers(size)) for size in weight.shape)
            with torch.no_grad():
                values = []
                for step in (1e-3, -1e-3):
                    weight[place] += step
                    values.append(float(objective()))
                    weight[place] -= step
            assert (values[0] - values[1]) / 2e-3 == pytest.approx(float(weight.grad[place]), abs=2e-3)


@pytest.mark.parametrize("size", [1, 64, 10_000])
def test_micro_batches_of_any_size_give_the_same_gradient(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = batches.chosen_logprobs

    def in_parts(*args: Any, **options: Any) -> Any:
        asked.append(len(args[2]))
        return whole(*args, most_logits=4 * args[0].config.vocab_size, **options)  # four states at a time

    gradients = []
    for most, ask in ((size, in_parts), (4096, whole)):
        monkeypatch.setattr(batches, "chosen_logprobs", ask)
        at = state("bytes", ACTIONS)
        model = copy.deepcopy(at.policy.model)
        learner = Learner(model, learner_config(minibatches=1, micro_batch_tokens=most, entropy_coef=0.01))
        requests = [Request(i, at.prompt, at.mask) for i in range(6)]
        done = at.policy.generate(requests, Sampling(1.0, 12), torch.Generator().manual_seed(1))  # type: ignore[arg-type]
        samples = [sample_of(at, c.ids, c.nodes) for c in done]
        for row, sample in enumerate(samples):
            sample.turn = [row if on else -1 for on in sample.mask]
            sample.logprobs[len(at.prompt) :] = done[row].logprobs
        turns = [Turn("", "", 0.0, "", prompt_ids=at.prompt, completion_ids=c.ids, logprobs=c.logprobs) for c in done]
        table = TurnTable.from_episodes([Episode(corridor(), 0, [turn]) for turn in turns])
        advantages = np.linspace(-1, 1, len(done))
        examples, _ = learner._examples(samples, table, table.per_token(advantages), engine_logprobs(samples), None)
        learner._gradients([Portion(examples, learner.objective)])
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert max(asked) > 4
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def masked_agent(policy: LocalPolicy, max_tokens: int = 12) -> MaskedAgent:
    return MaskedAgent(policy, Transcript(), Sampling(1.0, max_tokens), torch.Generator().manual_seed(0))


def test_an_agent_plays_only_admissible_actions() -> None:
    jobs = [Job(corridor(4), seed=i) for i in range(12)]
    with EnvPool(Corridors().make, 5) as pool:
        episodes = rollout(masked_agent(random_policy(), max_tokens=1), pool, jobs)
    turns = [turn for episode in episodes for turn in episode.turns]
    assert {turn.action for turn in turns} == {"go left", "go right", "open door 1"}
    assert all(turn.status is ParseStatus.OK and len(turn.nodes) == len(turn.completion_ids) for turn in turns)
    assert [node for sample in build_samples(episodes) for node in sample.nodes if node] == [
        node for turn in turns for node in turn.nodes
    ]


def test_an_action_that_no_longer_fits_ends_the_episode() -> None:
    policy = random_policy(context=24)
    view = View(
        0, Episode(corridor(), 0), "room 1 " * 6, {**INFO, "admissible": ["look", ("go to desk 10 now " * 8).strip()]}
    )
    (decision,) = masked_agent(policy).act([view])
    assert decision.status is None


def test_an_engine_that_samples_without_masks_is_refused() -> None:
    policy = random_policy()
    policy.takes_masks = False
    with pytest.raises(ValueError, match="rollout=local"):
        masked_agent(policy)


def test_a_token_that_ends_the_head_and_goes_on_as_no_action_ends_the_completion() -> None:
    policy = bytes_policy(words=["<action>fly", "<ACTION>fly"])
    form = ActionForm(CHAT, policy.tokenizer)
    mask = form.mask(["look", "go"])
    for text in ("<action>fly", "<ACTION>fly"):
        (token,) = policy.tokenizer.encode(text, add_special_tokens=False)
        assert mask.follow(mask.first, [token]) is None


@pytest.mark.parametrize(
    ("name", "actions", "left"),
    [
        ("template", ["LOOK", "look"], 1),  # which reads lower case
        ("tagged", ["a</action>b", " look ", "", "look"], 1),
        ("line", ["look\nup", "look"], 1),
        ("transcript", ["ask [<w>] politely", "look"], 2),  # no slot: it is written as it is
    ],
)
def test_actions_that_a_form_cannot_contain_are_masked(name: str, actions: list[str], left: int) -> None:
    prompter, policy = FORMS[name]
    form = ActionForm(prompter, policy.tokenizer)
    assert len(list(paths(state(name, actions).mask.first, [], []))) == left
    if left == 1:
        with pytest.raises(ValueError, match="none of the admissible actions can be written in this form"):
            form.mask(actions[:-1])


def test_a_slot_holds_only_what_the_form_reads_back() -> None:
    for name in FORMS:
        at, generator = state(name, ["search[<your query>]"]), np.random.default_rng(0)
        for _ in range(60):
            node, ids = at.mask.first, []
            while node is not None and len(ids) < 40:
                allowed = [*node.ids] * 20 + ([*np.flatnonzero(node.free)] if node.free is not None else [])
                ids.append(int(generator.choice(allowed)))
                node = at.mask.follow(node, ids)
            text = at.policy.tokenizer.decode(ids[:-1])
            if node is None:
                action, status = at.prompter.read(
                    f"{at.form.head}{text}", True, {**INFO, "admissible": ["search[<your query>]"]}
                )
                assert (status, action[:7], action[-1]) == (ParseStatus.OK, "search[", "]"), (name, text)


def test_a_slot_and_an_action_that_it_may_hold_are_one_path() -> None:
    prompter, policy = FORMS["transcript"]
    form = ActionForm(prompter, policy.tokenizer)
    actions = ["search[<your query>]", "search[red]", "look"]
    for action in ("search[red shoes]", "search[red]"):
        ids = form.action_ids(action, actions)
        assert len(form.mask(actions).path(ids)) == len(ids)


def test_stop_strings_do_not_truncate_actions() -> None:
    at = state("transcript", WHOLE)
    (done,) = at.policy.generate(
        [Request(0, at.prompt, at.mask)],
        Sampling(1.0, 12, stop=["o"]),
        torch.Generator().manual_seed(0),  # type: ignore[arg-type]
    )
    assert at.policy.tokenizer.decode(done.text_ids) in WHOLE


def test_the_mask_applies_to_the_action_and_not_to_the_reasoning() -> None:
    prompter, policy = FORMS["tagged"]
    form = ActionForm(prompter, policy.tokenizer)
    mask = form.mask(ACTIONS)

    def node(text: str) -> Node:
        ids = policy.tokenizer.encode(text, add_special_tokens=False)
        return mask.follow(mask.path(ids)[-1], ids)

    assert node("I go <b>left") is mask.first
    assert policy.tokenizer.eos_token_id not in np.flatnonzero(mask.first.free)
    assert node("<think>perhaps <action>") is mask.first  # in the middle of reasoning
    assert node("<think>perhaps</think><action>").free is None


@pytest.mark.parametrize("name", ["channel", "channel, line"])
def test_what_a_template_leaves_to_write_before_an_answer_is_forced(name: str) -> None:
    prompter, policy = FORMS[name]
    prompter.prompt_ids(policy.tokenizer, [], "Where?", INFO)
    form = ActionForm(prompter, policy.tokenizer)
    mask = form.mask(ACTIONS)
    ids = form.action_ids("look", ACTIONS)
    assert ids == prompter.action_ids(policy.tokenizer, "look")
    nodes = mask.path(ids)
    lead = policy.tokenizer.encode("<channel>final<message>", add_special_tokens=False)
    assert [node.forced for node in nodes[: len(lead)]] == lead == ids[: len(lead)]
    assert nodes[len(lead)].forced is None
    (done,) = policy.generate(
        [Request(0, prompter.prompt_ids(policy.tokenizer, [], "Where?", INFO), mask)],
        Sampling(max_tokens=300),
        torch.Generator().manual_seed(0),
    )
    assert done.ids[: len(lead)] == lead


def test_a_slot_is_in_the_brackets_that_end_an_action() -> None:
    """For those who read actions, mask them, and draw them alike."""
    actions = ["say <hello>", "open <a> door", "put[<x>] on[<shelf>]", "<look>", "read[<a>] now", "search[<a query>]"]
    assert [action for action in actions if has_slot(action)] == ["put[<x>] on[<shelf>]", "search[<a query>]"]
    assert fits("search[red shoes]", actions)
    assert fits("put[<x>] on[table]", actions)
    assert not any(fits(action, actions) for action in ("say hi", "put[a] on[table]", "look", "read[b] now"))
    policy = bytes_policy()
    mask = ActionForm(Transcript(), policy.tokenizer).mask(actions)
    for action in ("say <hello>", "<look>", "read[<a>] now", "put[<x>] on[table]"):
        mask.path([*policy.tokenizer.encode(action), policy.tokenizer.eos_token_id])
    view = View(0, Episode(corridor(3), 0), "", {"goal": "red shoes", "admissible": actions})
    drawn = {
        RandomAgent(0).act([replace(view, key=key, episode=Episode(corridor(3), 0, seed=key))])[0].action
        for key in range(60)
    }
    assert set(actions[:2]) | {"<look>", "read[<a>] now"} < drawn
    assert all(fits(action, actions) for action in drawn)
    assert not any("query" in action or "shelf" in action for action in drawn)
