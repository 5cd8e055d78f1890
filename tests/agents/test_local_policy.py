"""The policy's contract: it samples from the model's distribution, whatever is cached."""

import numpy as np
import pytest
import torch

from agents.agent import PolicyAgent, View
from agents.episode import Episode
from agents.policies import local
from agents.policies.base import Request, Sampling
from agents.policies.names import ModelError
from agents.policies.pretrained import Pretrained
from agents.prompts import Transcript
from algorithms.checkpoint import save_checkpoint
from tests.agents.corridors import corridor
from tests.agents.toys import random_policy


def test_kept_cache_gives_the_log_probabilities_of_a_full_forward() -> None:
    """Sessions grow by random amounts, come in changing order, leave and join; every log-probability is exact."""
    policy, rng = random_policy(), np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    history = {s: rng.integers(0, 260, rng.integers(3, 60)).tolist() for s in range(7)}
    for turn in range(6):
        if turn == 2:
            policy.release(3)
            del history[3]
        if turn == 3:
            history[11] = [5] * 40
        present = rng.permutation(list(history))[: 4 if turn == 4 else None].tolist()
        done = policy.generate([Request(s, history[s]) for s in present], Sampling(1.0, 5), generator)
        for session, completion in zip(present, done, strict=True):
            full = policy.score([history[session] + completion.ids])[0][-len(completion.ids) :]
            np.testing.assert_allclose(completion.logprobs, full, atol=1e-5)
            history[session] += completion.ids + rng.integers(0, 260, rng.integers(1, 30)).tolist()


def test_greedy_transcripts_equal_those_of_a_forward_without_cache() -> None:
    policy, generator = random_policy(), torch.Generator()
    ids = [0, 7, 8, 9]
    for _ in range(8):
        (kept,) = policy.generate([Request(1, ids)], Sampling(0.0, 6), generator)
        fresh = random_policy()
        (alone,) = fresh.generate([Request(5, ids)], Sampling(0.0, 6), generator)
        assert kept.ids == alone.ids
        ids = [*ids, *kept.ids, 20, 21]


def test_prompts_that_are_too_many_for_one_pass_are_read_in_several(monkeypatch) -> None:
    requests = [Request(s, [0, *range(3, 9 + s % 3), s]) for s in range(9)]
    whole = random_policy().generate(requests, Sampling(0.0, 4), torch.Generator())
    monkeypatch.setattr(local, "MOST_PREFILL", 32)
    parts = random_policy().generate(requests, Sampling(0.0, 4), torch.Generator())
    assert [done.ids for done in parts] == [done.ids for done in whole]
    assert len({tuple(done.ids) for done in whole}) > 1  # else their order could not be seen


def test_a_prompt_with_a_changed_history_is_read_again() -> None:
    policy, generator = random_policy(), torch.Generator().manual_seed(0)
    policy.generate([Request(1, [0, 5, 6, 7, 8])], Sampling(1.0, 4), generator)
    prompt = [0, 5, 9, 9, 9, 9, 9, 9]
    (done,) = policy.generate([Request(1, prompt)], Sampling(1.0, 4), generator)
    np.testing.assert_allclose(done.logprobs, policy.score([prompt + done.ids])[0][-len(done.ids) :], atol=1e-5)


def test_limits_end_a_completion() -> None:
    policy, generator = random_policy(context=24), torch.Generator().manual_seed(1)
    policy.stop_ids = []  # nothing stops but the limits
    short, long = policy.generate([Request(0, [1] * 4), Request(1, [1] * 21)], Sampling(1.0, 6), generator)
    assert (len(short.ids), short.finished) == (6, False)
    assert (len(long.ids), long.finished) == (3, False)
    with pytest.raises(ValueError, match="1 to 23 ids"):
        policy.generate([Request(2, [1] * 24)], Sampling(), generator)


def test_sampling_follows_the_distribution() -> None:
    """Frequencies over many draws from one prompt agree with the model's probabilities."""
    policy, generator = random_policy(), torch.Generator().manual_seed(0)
    policy.model.get_output_embeddings().weight.data.mul_(8)  # a distribution that is far from flat
    n = 4000
    done = policy.generate([Request(s, [3, 4, 5]) for s in range(n)], Sampling(1.0, 1), generator)
    counts = np.bincount([c.ids[0] for c in done], minlength=policy.model.config.vocab_size)
    expected = torch.stack([s[-1] for s in policy.score([[3, 4, 5, t] for t in range(len(counts))])]).exp().numpy()
    likely = expected > 0.01
    assert likely.sum() > 3
    error = np.sqrt(expected * (1 - expected) / n)
    assert np.all(np.abs(counts / n - expected)[likely] < 4.5 * error[likely])


def test_a_model_folder_is_loaded_as_it_was_saved(tmp_path) -> None:
    policy = random_policy()
    save_checkpoint(tmp_path / "model", policy.model, policy.tokenizer)
    loaded = Pretrained().load(tmp_path / "model", torch.device("cpu"))
    ids = policy.tokenizer.encode("You are in room 2.")
    assert loaded.tokenizer.encode("You are in room 2.") == ids
    torch.testing.assert_close(loaded.score([ids]), policy.score([ids]), rtol=0, atol=0)


def test_a_missing_model_folder_is_named_with_the_nearest_ones(tmp_path) -> None:
    policy = random_policy()
    save_checkpoint(tmp_path / "run" / "update-000002", policy.model, policy.tokenizer)
    with pytest.raises(ModelError, match="update-000002"):
        Pretrained().load(tmp_path / "run")


def test_a_long_prompt_is_read_in_parts(monkeypatch) -> None:
    """No pass makes a mask of more than so many scores, and what is sampled is the same."""
    policy, ids = random_policy(), [i % 40 for i in range(300)]
    (at_once,) = policy.generate([Request(0, ids)], Sampling(0.0, 4), torch.Generator().manual_seed(0))
    monkeypatch.setattr(local, "MOST_SCORES", 300 * 64)
    sizes: list[tuple[int, ...]] = []
    policy.model.base_model.register_forward_pre_hook(
        lambda _, __, given: sizes.append(given["attention_mask"].shape), with_kwargs=True
    )
    (in_parts,) = policy.generate([Request(1, ids)], Sampling(0.0, 4), torch.Generator().manual_seed(0))
    assert max(queries for *_, queries, _ in sizes) == 64
    assert in_parts.ids == at_once.ids
    np.testing.assert_allclose(in_parts.logprobs, at_once.logprobs, atol=1e-5)


def test_a_sequence_longer_than_the_context_is_not_scored() -> None:
    with pytest.raises(ValueError, match="at most 64 ids, got 65"):
        random_policy(context=64).score([[1] * 65])


def test_an_observation_that_cannot_fit_ends_its_episode_and_is_not_encoded(monkeypatch, caplog) -> None:
    prompter = Transcript()
    encoded, encode = [], prompter._encode_quoted
    monkeypatch.setattr(prompter, "_encode_quoted", lambda t, text: encoded.append(text) or encode(t, text))
    playing = PolicyAgent(random_policy(context=61), prompter, Sampling(1.0, 4), torch.Generator().manual_seed(0))
    views = [
        View(key, Episode(corridor(), 0), seen, {"admissible": None})
        for key, seen in enumerate(["You are in room 1.", "go " * 2_000_000, "go " * 70, "You are in room 2."])
    ]
    decisions = playing.act(views)
    assert [decision.status is None for decision in decisions] == [False, True, True, False]
    assert encoded == [views[i].observation for i in (0, 2, 3)]
    assert "an observation does not fit into 60 ids" in caplog.text
