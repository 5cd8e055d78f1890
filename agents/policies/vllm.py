"""Sample with vLLM in this process, from the weights that transformers trains: `rollout=vllm`.

vLLM has its own kernels, so its results are checked: after each change of the weights, a probe compares its
log-probabilities with those of the trained model, and the run ends if they differ too much.

Written for the interface of vLLM 0.32. The parts for GPUs (sleeping while the weights are trained) follow its
documentation and were not run. Weights are passed as tensors of this process: vLLM's CUDA IPC for a shared GPU cannot
be opened by the process that created it.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from agents.masking import Mask, Node
from agents.policies.base import Completion, End, Request, Sampling, Writing, check_vllm, no_truncation, token_limits
from agents.policies.local import LocalPolicy
from agents.policies.lora import merged_weights
from agents.policies.models import masked_logits, next_token_logits, token_logprobs, truncated
from agents.policies.pretrained import DTYPES
from envs.core import UnknownNameError

MASK = "polyturn_mask"  # the extra argument of a request that names its `EngineWriting`
MASKS = "agents.policies.vllm_masks:MaskProcessor"
WORKER = "agents.policies.vllm_worker.TrainedWeights"
CPU_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than it saves
}
# The largest allowed difference from the trained model, in nats. In bfloat16, logits of 16 to 32 are 1/8 apart.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.5}
PROBE_TEXT = """On the first day of spring the old lighthouse keeper counted 37 ships, wrote their names into his book,
and went down to the harbour, where somebody had left a box with a note: do not open before noon."""
PROBE_LENGTH, PROBE_TOKENS, PROBE_TEMPERATURE = 48, 4, 0.5


class SyncError(OSError):
    """The engine does not sample from the trained weights."""


@dataclass(frozen=True)
class Answer:
    """vLLM's answer to one prompt."""

    ids: list[int]  # [C]
    logprobs: list[float]  # [C], after temperature
    stopped: bool  # False if the limit of tokens ended it
    prompt_logprobs: list[float]  # [P - 1]; empty if they were not requested


@dataclass(kw_only=True)
class EngineWriting(Writing):
    """A completion that the engine writes under a mask, with truncated `sampling`, or both."""

    sampling: Sampling
    kept: dict[int, Node] = field(default_factory=dict)  # by the number of ids before it

    def allowed(self, ids: list[int], logits: Tensor) -> Tensor:
        """`logits` [V] after `ids`, with -inf for what is masked or left out."""
        if self.mask is not None:
            logits = masked_logits(logits[None], [self.next_node(ids)])[0]
        if self.sampling.truncation:
            (kept,) = truncated(logits[None], self.sampling)
            self.kept[len(ids)] = kept
            logits = masked_logits(logits[None], [kept])[0]
        return logits

    def take_all(self, ids: Sequence[int]) -> None:
        """The ids of a whole completion so far, of which some were taken before."""
        for token in ids[len(self.ids) :]:
            if self.end is None:
                self.take(token)

    def next_node(self, ids: Sequence[int]) -> Node:
        """What may follow `ids`; where they have ended, what ends the engine's completion too."""
        try:
            self.take_all(ids)
        except ValueError:  # raised after the engine has finished: an error in its loop would leave it unusable
            self.end = End.LENGTH
        if self.end is None and self.node is not None:
            return self.node
        ended = Node()
        ended.children[self.stop_ids[0]] = None
        return ended


class _ProbeMask(Mask):
    """`PROBE_TOKENS` ids, each one of a few ids of the prompt."""

    def __init__(self, prompt: Sequence[int]) -> None:
        after: Node | None = None
        for _ in range(PROBE_TOKENS):
            node = Node()
            node.children = dict.fromkeys(sorted(set(prompt))[:8], after)
            after = node
        self.first = node

    def follow(self, node: Node, ids: Sequence[int]) -> Node | None:
        return node.follow(ids[-1])


# What the engine is writing under masks or with truncation, by the number that a request names.
WRITING: dict[int, EngineWriting] = {}


class Engine(ABC):
    """A policy (`agents.policies.base.Policy`) that samples in another engine than the one that trains."""

    takes_masks = False

    def __init__(self, trained: LocalPolicy, context_length: int, tolerance: float) -> None:
        self.trained, self.tokenizer, self.device = trained, trained.tokenizer, trained.device
        self.context_length, self.tolerance = context_length, tolerance

    @abstractmethod
    def _ask(self, prompts: list[list[int]], settings: list[dict[str, Any]]) -> list[Answer]:
        """The answers to the prompts, each with its own settings under vLLM's names."""

    @abstractmethod
    def _load(self) -> None:
        """Load the trained weights into the engine, and clear what it cached with the old ones."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, generator: torch.Generator) -> list[Completion]:
        """Continue every request; see `Policy.generate`. Raises `ValueError` for a prompt that leaves no room."""
        if not requests:
            return []
        if sampling.truncation and not self.takes_masks:
            raise ValueError(no_truncation(sampling.truncation))
        limits = token_limits(requests, sampling, self.context_length)
        seeds = torch.randint(2**62, (len(requests),), generator=generator, device=generator.device).tolist()
        settings = {
            "temperature": sampling.temperature,
            "stop": list(sampling.stop),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,  # stop strings may contain them
            "stop_token_ids": self.trained.stop_ids,
            "ignore_eos": True,  # these are the stop tokens
        }
        each = [{**settings, "max_tokens": limit, "seed": seed} for limit, seed in zip(limits, seeds, strict=True)]
        for number, (request, limit) in enumerate(zip(requests, limits, strict=True)):
            if request.mask is None and not sampling.truncation:
                continue
            room = self.context_length - len(request.prompt_ids)
            WRITING[number] = EngineWriting(request.mask, limit, room, self.trained.stop_ids, sampling=sampling)
            each[number]["extra_args"] = {MASK: number}
            if request.mask is not None:
                each[number] |= {"stop": [], "max_tokens": room}
        try:
            answers = self._ask([list(request.prompt_ids) for request in requests], each)
            return [self._completion(answer, WRITING.get(number)) for number, answer in enumerate(answers)]
        finally:
            WRITING.clear()

    def _completion(self, answer: Answer, writing: EngineWriting | None) -> Completion:
        if writing is None or writing.mask is None:
            nodes = [writing.kept[place] for place in range(len(answer.ids))] if writing else []
            return Completion(answer.ids, answer.logprobs, self._end(answer), nodes)
        taken = replace(writing, ids=[], nodes=[], end=None)
        taken.take_all(answer.ids)
        nodes = [writing.kept.get(place, node) for place, node in enumerate(taken.nodes)]
        return Completion(taken.ids, answer.logprobs[: len(taken.ids)], taken.end or End.LENGTH, nodes)

    def _end(self, answer: Answer) -> End:
        if answer.ids[-1] in self.trained.stop_ids:
            return End.TOKEN
        return End.STRING if answer.stopped else End.LENGTH

    def score(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probabilities of given ids, see `Policy.score`; sequences must be shorter than the context."""
        settings = {"prompt_logprobs": 0, "max_tokens": 1}
        answers = self._ask([list(ids) for ids in sequences], [settings] * len(sequences))
        return [torch.tensor(answer.prompt_logprobs) for answer in answers]

    def score_candidates(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[Sequence[int]]]
    ) -> list[Tensor]:
        """See `Policy.score_candidates`; the prompt is read again for each candidate."""
        pairs = list(zip(prompts, candidates, strict=True))
        scores = iter(self.score([[*prompt, *ids] for prompt, these in pairs for ids in these]))
        return [torch.stack([next(scores)[len(prompt) - 1 :].sum() for _ in these]) for prompt, these in pairs]

    def release(self, session: int) -> None:  # noqa: B027 - there is nothing to do
        """See `Policy.release`; vLLM forgets prefixes by itself, the oldest first."""

    def pause(self) -> None:  # noqa: B027 - a server has its own memory
        """See `Policy.pause`."""

    def sync(self) -> dict[str, float]:
        """See `Policy.sync`. Raises `SyncError` if the engine's log-probabilities differ from the trained model's."""
        self._load()
        given, sampled = self._probe()
        if not (given <= self.tolerance and sampled <= self.tolerance):  # this also rejects NaN
            raise SyncError(
                "vLLM does not sample from the trained weights. Their log-probabilities differ by "
                f"{given:.2g} nats for given ids, and by {sampled:.2g} for ids that it sampled at "
                f"temperature {PROBE_TEMPERATURE}; at most {self.tolerance:g} is allowed (rollout.tolerance, "
                "by default set by rollout.dtype)"
            )
        return {"sync/probe_error": max(given, sampled)}

    @torch.no_grad()  # `inference_mode` would make a sharded model untrainable
    def _probe(self) -> tuple[float, float]:
        """The largest differences from the trained model: for given ids, and for ids sampled after them."""
        length = min(PROBE_LENGTH, self.context_length - PROBE_TOKENS)
        prompt = self.tokenizer.encode(PROBE_TEXT, add_special_tokens=False)[:length]
        # Sample first: otherwise the prompt would already be in a prefix cache that was not emptied.
        request, sampling = Request(0, prompt), Sampling(PROBE_TEMPERATURE, PROBE_TOKENS)
        (completion,) = self.generate([request], sampling, torch.Generator(self.device).manual_seed(0))
        ids = torch.tensor([prompt + completion.ids], device=self.device)
        expected = token_logprobs(self.trained.model, ids, PROBE_TEMPERATURE)[0, -len(completion.ids) :].cpu()
        (ours,), (theirs,) = self.trained.score([prompt]), self.score([prompt])
        error = float((torch.tensor(completion.logprobs) - expected).abs().max())
        if self.takes_masks:
            error = max(error, self._probe_mask(prompt))
        return float((theirs - ours).abs().max()), error

    def _probe_mask(self, prompt: list[int]) -> float:
        """The largest difference over ids that are sampled under a mask. Raises `SyncError` for an id out of it."""
        request, sampling = Request(0, prompt, _ProbeMask(prompt)), Sampling(PROBE_TEMPERATURE, PROBE_TOKENS)
        try:
            (done,) = self.generate([request], sampling, torch.Generator(self.device).manual_seed(0))
        except ValueError as error:
            raise SyncError(f"vLLM samples what a mask does not allow: {error}") from error
        ids = torch.tensor([prompt + done.ids], device=self.device)
        logits = next_token_logits(self.trained.model, ids[:, :-1])[0, -len(done.ids) :]
        allowed = torch.log_softmax(masked_logits(logits, done.nodes) / PROBE_TEMPERATURE, dim=-1).cpu()
        expected = allowed.gather(-1, torch.tensor(done.ids)[:, None])[:, 0]
        return float((torch.tensor(done.logprobs) - expected).abs().max())


class VllmPolicy(Engine):
    """vLLM in this process, on the device that trains the weights; on a GPU it sleeps during training."""

    takes_masks = True

    def __init__(
        self,
        trained: LocalPolicy,
        *,
        dtype: str | None = None,
        max_context: int | None = None,
        gpu_memory: float = 0.4,
        enforce_eager: bool = False,
        tolerance: float | None = None,
        **options: Any,
    ) -> None:
        """Start the engine; the first `sync` loads the weights. `options` are arguments of `vllm.LLM`.

        `dtype` defaults to that of the trained weights, `max_context` (ids) to the model's, `tolerance` (nats) to
        `TOLERANCE`. `gpu_memory` is the share of the GPU to use; on a CPU, VLLM_CPU_KVCACHE_SPACE (GiB) sets it.
        """
        sampled = sampled_dtype(trained, dtype)
        context = min(trained.context_length, max_context or trained.context_length)
        super().__init__(trained, context, tolerance or default_tolerance(trained, sampled))
        self._on_gpu, self._asleep = torch.cuda.is_available(), False
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are passed as tensors of this process
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # of two interfaces, masks are written for the first
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if not self._on_gpu:
            for name, value in CPU_SETTINGS.items():
                os.environ.setdefault(name, value)
        if torch.distributed.is_initialized() and "RANK" in os.environ:  # an engine in each rank, on the rank's GPU
            options = {"distributed_executor_backend": "external_launcher"} | options
        vllm = import_vllm()
        self._parameters = vllm.SamplingParams
        with TemporaryDirectory(prefix="polyturn-vllm-") as folder:
            config = copy.deepcopy(trained.model.config)
            config.architectures = [type(trained.model).__name__]
            config.save_pretrained(folder)
            trained.tokenizer.save_pretrained(folder)
            self.llm = vllm.LLM(
                folder,
                load_format="dummy",  # random weights until `sync`
                dtype=str(sampled).removeprefix("torch."),
                max_model_len=context,
                logprobs_mode="processed_logprobs",  # after temperature, as the trainer computes them
                worker_extension_cls=WORKER,
                logits_processors=[MASKS],
                gpu_memory_utilization=gpu_memory,
                enable_sleep_mode=self._on_gpu,
                enforce_eager=enforce_eager or not self._on_gpu,
                **options,
            )

    def _ask(self, prompts: list[list[int]], settings: list[dict[str, Any]]) -> list[Answer]:
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [self._parameters(logprobs=0, **one) for one in settings],  # of the sampled id only
            use_tqdm=False,
        )
        return [_answer(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]

    def pause(self) -> None:
        """See `Policy.pause`. On a GPU this frees weights and cache; on a CPU it does nothing."""
        if self._on_gpu and not self._asleep:
            self.llm.sleep(level=2)
            self._asleep = True

    def _load(self) -> None:
        if self._asleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("load_trained", args=(merged_weights(self.trained.model),))
        if self._asleep:  # not earlier: old weights, new weights and the cache need not fit at once
            self.llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        if not self.llm.reset_prefix_cache():
            raise SyncError("vLLM still caches prefixes computed with old weights: requests are still running")


def import_vllm() -> Any:
    """The vllm module. Raises `ImportError` with how to install it."""
    check_vllm()
    import vllm

    return vllm


def sampled_dtype(trained: LocalPolicy, dtype: str | None) -> torch.dtype:
    """The dtype that an engine computes in: `dtype`, or that of the trained weights."""
    if dtype is not None and dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    return DTYPES[dtype] if dtype else trained.model.dtype


def default_tolerance(trained: LocalPolicy, sampled: torch.dtype) -> float:
    """The allowed difference between trainer and sampler, in nats, from their dtypes. Raises for packed weights."""
    if getattr(trained.model, "hf_quantizer", None) is not None:
        raise ValueError("weights with policy.quantization cannot be passed to vLLM; use rollout=local")
    return max(TOLERANCE[trained.model.dtype], TOLERANCE[sampled])


def _answer(prompt: list[int], output: Any) -> Answer:
    """Convert vLLM's `RequestOutput`; its steps are dictionaries from ids to log-probabilities."""
    (completion,) = output.outputs
    ids = list(completion.token_ids)
    given = output.prompt_logprobs or [None]
    return Answer(
        ids,
        [step[i].logprob for i, step in zip(ids, completion.logprobs, strict=True)],
        completion.finish_reason == "stop",
        [step[i].logprob for i, step in zip(prompt[1:], given[1:], strict=False)],
    )
