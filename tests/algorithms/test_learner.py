"""One update: the gradient is that of the formula, whatever the batch is cut into."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.samples import Sample
from algorithms import learner as learner_module
from algorithms.batches import chosen_logprobs
from algorithms.learner import Learner, check_precision
from algorithms.turn_table import TurnTable
from tests.agents.toys import random_policy
from tests.algorithms.test_trainer import learner_config


def samples() -> tuple[list[Sample], TurnTable, np.ndarray]:
    """Five sequences of two turns each, with the log-probabilities of the untrained policy; their table; advantages."""
    rng, policy = np.random.default_rng(0), random_policy()
    made = []
    for i in range(5):
        sample = Sample()
        for turn in range(2):
            sample.extend(rng.integers(0, 250, rng.integers(2, 40)).tolist())
            sample.extend(rng.integers(0, 250, 3).tolist(), [0.0] * 3, 2 * i + turn)
        exact = policy.score([sample.ids])[0].tolist()
        sample.logprobs = [exact[j - 1] if on else 0.0 for j, on in enumerate(sample.mask)]
        made.append(sample)
    table = TurnTable(
        group=np.zeros(10, dtype=np.int64),
        episode=np.repeat(np.arange(5), 2),
        turn=np.tile(np.arange(2), 5),
        reward=np.zeros(10),
        state=np.array([str(i) for i in range(10)], dtype=object),
        valid=np.ones(10, dtype=np.bool_),
        tokens=np.full(10, 3),
    )
    return made, table, rng.normal(size=10)


def weights_after(learning_rate: float = 1.0, **changes) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    policy = random_policy()
    batch, table, advantages = samples()
    learner = Learner(policy.model, learner_config(minibatches=1, **changes))
    # Plain steps show the gradient; Adam would blow up the rounding of gradients that are nearly zero.
    learner.optimizer = torch.optim.SGD(policy.model.parameters())
    metrics = learner.update(batch, table, advantages, np.random.default_rng(0), learning_rate)
    return policy.model.state_dict(), metrics


@pytest.mark.parametrize(
    "aggregation", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "turn-mean", "trajectory-mean"]
)
def test_micro_batches_change_nothing(aggregation: str) -> None:
    whole, _ = weights_after(micro_batch_tokens=100_000, aggregation=aggregation)
    parts, _ = weights_after(micro_batch_tokens=1, aggregation=aggregation)
    for name, weight in whole.items():
        torch.testing.assert_close(weight, parts[name], atol=1e-6, rtol=0)


def test_the_learning_rate_is_that_of_the_update() -> None:
    whole, _ = weights_after()
    part, _ = weights_after(learning_rate=0.8)
    for name, weight in random_policy().model.state_dict().items():
        torch.testing.assert_close(part[name] - weight, 0.8 * (whole[name] - weight), atol=1e-6, rtol=1e-4)


def test_the_learning_rate_warms_up_and_goes_to_its_end_in_a_line() -> None:
    config = learner_config(learning_rate=1.0, final_learning_rate=0.2, warmup_updates=0)
    assert [config.rate(update, 4) for update in range(4)] == pytest.approx([1.0, 0.8, 0.6, 0.4])
    config = replace(config, warmup_updates=2)
    assert [config.rate(update, 4) for update in range(4)] == pytest.approx([0.5, 0.8, 0.6, 0.4])


def test_on_policy_the_ratio_is_one() -> None:
    _, metrics = weights_after()
    assert metrics["mismatch/max_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["mismatch/kl"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["train/clip_fraction"] == 0.0
    assert 0 < metrics["train/entropy"] <= np.log(random_policy().model.config.vocab_size)


def test_good_actions_become_likelier_and_bad_ones_less() -> None:
    policy = random_policy()
    batch, table, advantages = samples()
    learner = Learner(policy.model, learner_config(minibatches=1))
    before = [policy.score([s.ids])[0] for s in batch]
    learner.update(batch, table, advantages, np.random.default_rng(0), 1e-3)
    gains = []
    for i, sample in enumerate(batch):
        change = policy.score([sample.ids])[0] - before[i]
        for turn in range(2):
            places = [j - 1 for j, row in enumerate(sample.turn) if row == 2 * i + turn]
            gains.append(float(change[places].sum()))
    assert np.corrcoef(gains, advantages)[0, 1] > 0.8


def test_without_advantage_and_without_kl_nothing_moves() -> None:
    policy, fresh = random_policy(), random_policy()
    batch, table, advantages = samples()
    metrics = Learner(policy.model, learner_config()).update(
        batch, table, advantages * 0, np.random.default_rng(0), 1.0
    )
    assert metrics == {"train/loss": 0.0, "train/grad_norm": 0.0, "tokens/trained": 0.0}  # no mean over nothing
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(weight, fresh.model.state_dict()[name])


def test_kl_pulls_back_to_the_reference() -> None:
    """After the policy was moved away, updates without advantage but with KL bring it nearer again."""
    policy = random_policy()
    batch, table, advantages = samples()
    learner = Learner(policy.model, learner_config(minibatches=1, kl_coef=1.0))
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    kls = [learner.update(batch, table, advantages * 0, np.random.default_rng(0), 1e-3)["train/kl"] for _ in range(15)]
    assert kls[0] > 1e-4
    assert kls[-1] < kls[0] / 2


def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(ValueError, match="no bfloat16 arithmetic"):
        check_precision("bfloat16", torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert check_precision("bfloat16", torch.device("cpu")) is torch.bfloat16


# -- memory -----------------------------------------------------------------------------------------------------------
def test_log_probabilities_in_parts_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator, requires_grad=True)
    chosen = torch.randint(0, 50, (37,), generator=generator)
    rows: list[int] = []

    class Head(torch.nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            rows.append(len(states))
            return super().forward(states)

    head = Head(16, 50, bias=False)
    model = random_policy().model
    model.set_output_embeddings(head)
    model.config.vocab_size = 50

    def made(most_logits: int) -> tuple[torch.Tensor, ...]:
        rows.clear()
        logprobs, entropies = chosen_logprobs(model, hidden, chosen, 0.7, most_logits)
        weight = torch.linspace(-1, 1, 37)
        gradients = torch.autograd.grad((logprobs * weight).sum(), [hidden, head.weight])
        return logprobs, entropies, *gradients

    whole = made(10_000)
    assert rows == [37]
    for mine, expected in zip(made(450), whole, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
    assert max(rows) == 9  # 450 logits are 9 rows of 50
    expected = torch.log_softmax(head(hidden) / 0.7, -1)[torch.arange(37), chosen]
    torch.testing.assert_close(whole[0], expected)


def test_gradient_checkpointing_computes_layers_twice_and_changes_nothing() -> None:
    calls = 0

    def count(*_) -> None:
        nonlocal calls
        calls += 1

    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, *_: count() if type(module).__name__.endswith("Attention") else None
    )
    try:
        plain, _ = weights_after(micro_batch_tokens=100_000)
        without, calls = calls, 0
        kept, _ = weights_after(micro_batch_tokens=100_000, gradient_checkpointing=True)
    finally:
        handle.remove()
    assert calls - without == random_policy().model.config.num_hidden_layers
    for name, weight in plain.items():
        torch.testing.assert_close(weight, kept[name], atol=1e-6, rtol=0)


def test_out_of_memory_goes_on_with_smaller_micro_batches(monkeypatch, caplog) -> None:
    """Whatever was added up before the error is thrown away, and the update is that of the smaller micro-batches."""
    expected, _ = weights_after(micro_batch_tokens=100_000)
    make_batch = learner_module.make_batch

    def greedy(micro_batch, device):
        if len(micro_batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make_batch(micro_batch, device)

    monkeypatch.setattr(learner_module, "make_batch", greedy)
    got, _ = weights_after(micro_batch_tokens=1024)
    assert "micro-batches of 512 tokens" in caplog.text
    for name, weight in expected.items():
        torch.testing.assert_close(weight, got[name], atol=1e-6, rtol=0)


def test_out_of_memory_for_a_single_sample_comes_through(monkeypatch) -> None:
    def never(micro_batch, device):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(learner_module, "make_batch", never)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        weights_after(micro_batch_tokens=100_000)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch) -> None:
    calls = []

    def broken(micro_batch, device):
        calls.append(len(micro_batch))
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(learner_module, "make_batch", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        weights_after(micro_batch_tokens=100_000)
    assert len(calls) == 1
