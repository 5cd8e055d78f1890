"""One run in several processes ("ranks"), started by torchrun: `parallel=none`, `replicas` or `shards`.

Every rank runs the same program on the same batch: all ranks compute the same tasks, table, signals, advantages,
divisor of the loss, order of samples and micro-batches. Only two things are distributed over the ranks:

* *episodes*. A batch of jobs is split into `chunks`, and each chunk has its own generator, so the episodes do not
  depend on the number of ranks. Afterwards every rank gets all episodes.
* *forward and backward passes*. Each rank makes some of them; values are gathered, and gradients are summed.

No estimator, loss or signal knows about ranks. With `replicas`, every rank has all weights, and the gradients are
summed once for each step. With `shards`, the weights, gradients and moments of Adam are divided, see
`agents.policies.sharded`.

Rank 0 alone writes files and runs trees, judges and Monte Carlo attempts. The other ranks get its results.

Torch is imported when a rank starts, because mistakes in the configuration are reported before that import.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from agents.agent import PolicyAgent
from agents.episode import Episode, Turn
from agents.rollout import Job
from algorithms.launch import Launch
from algorithms.liveness import Liveness, RankError

if TYPE_CHECKING:
    import torch

    from agents.policies.local import LocalPolicy

T = TypeVar("T")
P = TypeVar("P")
Play = Callable[[PolicyAgent, Sequence[Job]], list[Episode]]


class Parallel:
    """A run in one process, `parallel=none`. Also the interface of the other kinds."""

    rank, ranks = 0, 1
    shards_weights = False

    def check(self, groups: int, group_size: int) -> None:  # noqa: ARG002
        """Raise `ValueError` if a batch of `groups` × `group_size` episodes cannot be distributed over the ranks."""
        launch = Launch.of_environment()
        if launch is not None and launch.ranks > 1:
            raise ValueError(
                f"torchrun started {launch.ranks} processes, and parallel=none would make each of them a run of its "
                "own: use parallel=replicas or parallel=shards"
            )

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the files of the run."""
        return self.rank == 0

    def describe(self) -> str:
        """A description in one line."""
        return "one process"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Connect the ranks."""
        yield

    # -- models -----------------------------------------------------------------------------------------------------
    def place(self, model: Any, dtype: torch.dtype) -> None:
        """Shard the weights of `model`, if this kind shards them. Call it before making the optimiser.

        The model then computes in `dtype`.
        """

    def sampler(self, policy: LocalPolicy) -> LocalPolicy:
        """The policy that samples: the trained one, or a complete copy of it. Call it before `place`."""
        return policy

    # -- passes -----------------------------------------------------------------------------------------------------
    def passes(self, parts: Sequence[P], costs: Sequence[float]) -> Iterator[tuple[P, float]]:  # noqa: ARG002
        """The `parts` of a computation that this rank computes, each with its weight.

        A part with weight 0 does not count. The rank computes it only because the others wait for it in collectives.
        """
        return ((part, 1.0) for part in parts)

    def sum_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Sum the gradients of all ranks, unless the backward passes have done this."""

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over the ranks of each value."""
        return values

    def max(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The largest of the ranks' values, for each value."""
        return values

    # -- everything else --------------------------------------------------------------------------------------------
    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return flag

    def first(self, compute: Callable[[], T]) -> T:
        """The result of `compute`, which only the first rank calls. Raises on all ranks if it raises."""
        return compute()

    def play(self, agent: PolicyAgent, jobs: Sequence[Job], play: Play, key: Sequence[int]) -> list[Episode]:  # noqa: ARG002
        """The episodes of all jobs, in their order. `key` seeds the chunks' generators; each call needs its own."""
        return play(agent, jobs)

    def play_first(self, play: Callable[[], list[Episode]], rng: np.random.Generator) -> list[Episode]:  # noqa: ARG002
        """The episodes of `play`, which only the first rank calls. It draws from `rng`, whose state all ranks get.

        The other ranks get the turns without their `start`, as a state of an environment has no use there.
        """
        return play()

    def agree(self, what: str, facts: Mapping[str, Any]) -> None:
        """Raise `ValueError` on all ranks if a rank has other `facts` than the first."""

    def seconds(self) -> dict[str, float]:
        """Metrics: how long this rank waited for others and for the transfer of data, since the last call."""
        return {}


ONE_PROCESS = Parallel()


@dataclass
class Ranks(Parallel):
    """What `replicas` and `shards` share.

    `chunks` is the number of parts that a batch is played in. The sampled episodes depend on it, but not on the number
    of ranks. A rank that the others wait for longer than `timeout` seconds ends the run. A stopped process is detected
    earlier.
    """

    chunks: int
    timeout: float
    rank: int = field(init=False, default=0)
    ranks: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise ValueError(f"parallel.chunks must be at least 1, got {self.chunks}")
        if self.timeout <= 0:
            raise ValueError(f"parallel.timeout must be more than 0 seconds, got {self.timeout}")
        if (launch := Launch.of_environment()) is not None:
            self.rank, self.ranks = launch.rank, launch.ranks
        self._launch = launch
        self._waited = 0.0
        self._live: Liveness | None = None
        self._group: Any = None  # process group on the CPU, for everything except weights and gradients

    @property
    def name(self) -> str:
        """The option of the group `parallel`."""
        return type(self).__name__.lower()

    def describe(self) -> str:
        divided = "divide the weights among them" if self.shards_weights else "have all weights"
        return f"{self.ranks} process{'es' * (self.ranks != 1)}, which {divided} (parallel={self.name})"

    def check(self, groups: int, group_size: int) -> None:
        if self._launch is None:
            raise ValueError(
                f"parallel={self.name} needs torchrun, which starts the processes: torchrun --standalone "
                f"--nproc-per-node 2 -m scripts.train parallel={self.name} …"
            )
        if self.ranks > groups * group_size:
            raise ValueError(
                f"{self.ranks} ranks are more than the {groups * group_size} episodes of a batch (trainer.groups="
                f"{groups}, trainer.group_size={group_size}): use fewer ranks or larger batches"
            )
        if self.ranks > self.chunks:
            raise ValueError(
                f"{self.ranks} ranks are more than the parallel.chunks={self.chunks} that a batch is played in; use "
                f"parallel.chunks={self.ranks}, or a multiple of it"
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Connect the ranks. An error of a collective becomes a `RankError` that names what this rank waited for."""
        import torch
        import torch.distributed as dist

        assert self._launch is not None
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            if not dist.is_nccl_available():
                raise ValueError("this torch has no NCCL, which connects GPUs: install a build of torch for CUDA")
            if self._launch.local_rank >= (found := torch.cuda.device_count()):
                raise ValueError(f"rank {self.rank} has no GPU: this machine has {found}; use --nproc-per-node {found}")
            torch.cuda.set_device(self._launch.local_rank)
        limit = timedelta(seconds=self.timeout + 30)  # `Liveness` is earlier, and names the rank
        store = ranks_store()
        own_keys = dist.PrefixStore("group", store)  # type: ignore[attr-defined]
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=own_keys, rank=self.rank,
            world_size=self.ranks, timeout=limit,
        )  # fmt: skip
        self._group = dist.new_group(backend="gloo", timeout=limit)
        self._live = Liveness(store, self.rank, self.ranks, self.timeout)
        try:
            with self._live:
                yield
                self._wait("the end of the run", lambda: dist.barrier(self._group))
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not _is_of_a_collective(error):
                raise
            raise RankError(
                f"rank {self.rank} lost another rank during {self._live.doing!r}: {' '.join(str(error).split())[:200]}"
            ) from error
        if "vllm" not in sys.modules:  # its engine ends the groups itself, when the process ends
            dist.destroy_process_group()

    def _wait(self, what: str, collective: Callable[[], T]) -> T:
        """Call a collective; `what` names it if a rank does not answer."""
        assert self._live is not None
        start = time.perf_counter()
        with self._live.waiting(what):
            result = collective()
        self._waited += time.perf_counter() - start
        return result

    def passes(self, parts: Sequence[P], costs: Sequence[float]) -> Iterator[tuple[P, float]]:
        """Assign the parts in the order of their costs, back and forth over the ranks.

        So all ranks get the same number of parts, of similar costs.
        """
        for number, (part, weight) in enumerate(own := self._own(parts, costs), 1):
            if not self.shards_weights or self._live is None:
                yield part, weight
                continue
            with self._live.waiting(f"pass {number} of {len(own)}"):  # in which weights are gathered
                yield part, weight

    def _own(self, parts: Sequence[P], costs: Sequence[float]) -> list[tuple[P, float]]:
        order = sorted(range(len(parts)), key=lambda number: -costs[number])
        rounds = [order[start : start + self.ranks] for start in range(0, len(order), self.ranks)]
        own = []
        for number, of_ranks in enumerate(rounds):
            place = self.rank if number % 2 == 0 else self.ranks - 1 - self.rank
            if place < len(of_ranks):
                own.append((parts[of_ranks[place]], 1.0))
            elif self.shards_weights:
                own.append((parts[order[-1]], 0.0))
        return own

    def sum_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        import torch
        import torch.distributed as dist

        whole = [p for p in parameters if not hasattr(p, "full_tensor")]
        if not whole:
            return
        has = torch.tensor([float(p.grad is not None) for p in whole], device=whole[0].device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in whole]
        flat = torch.cat([*(gradient.flatten().float() for gradient in gradients), has])
        self._wait("the sum of gradients", lambda: dist.all_reduce(flat))
        *sums, has = torch.split(flat, [*(p.numel() for p in whole), len(whole)])
        for parameter, gradient, ranks in zip(whole, sums, has.tolist(), strict=True):
            if ranks:  # otherwise it has no gradient, and the optimiser leaves it alone
                parameter.grad = gradient.view_as(parameter).to(parameter.dtype)

    def _reduce(self, values: NDArray[np.float64], operation: str) -> NDArray[np.float64]:
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(np.array(values, dtype=np.float64))
        self._wait(
            f"the {operation} of values",
            lambda: dist.all_reduce(tensor, getattr(dist.ReduceOp, operation.upper()), self._group),
        )
        return cast("NDArray[np.float64]", tensor.numpy())

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._reduce(values, "sum")

    def max(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._reduce(values, "max")

    def any(self, flag: bool) -> bool:
        return bool(self.max(np.array([float(flag)]))[0])

    def _gather(self, what: str, value: T) -> list[T]:
        """The `value` of every rank."""
        import torch.distributed as dist

        values: list[Any] = [None] * self.ranks
        self._wait(what, lambda: dist.all_gather_object(values, value, self._group))
        return values

    def first(self, compute: Callable[[], T]) -> T:
        return self._first(compute, lambda result: result)

    def _first(self, compute: Callable[[], T], sent: Callable[[T], object]) -> T:
        import torch.distributed as dist

        result: list[Any] = [None]
        failure: Exception | None = None
        if self.is_first:
            try:
                own = compute()
                result = [(True, pickle.dumps(sent(own)))]
            except Exception as error:
                result, failure = [(False, f"{type(error).__name__}: {error}")], error
        self._wait("the result of rank 0", lambda: dist.broadcast_object_list(result, 0, self._group))
        if failure is not None:
            raise failure
        done, value = result[0]
        if not done:
            raise RankError(f"rank {self.rank} ends, since rank 0 raised {value}")
        return own if self.is_first else cast("T", pickle.loads(value))

    def play(self, agent: PolicyAgent, jobs: Sequence[Job], play: Play, key: Sequence[int]) -> list[Episode]:
        import torch

        chunks = np.array_split(np.arange(len(jobs)), min(self.chunks, len(jobs)))
        played = {}
        for number in range(self.rank, len(chunks), self.ranks):
            seed = int(np.random.SeedSequence([*key, number]).generate_state(1, np.uint64)[0])
            generator = torch.Generator(agent.generator.device).manual_seed(seed)
            played[number] = play(replace(agent, generator=generator), [jobs[job] for job in chunks[number]])
        of_ranks = self._gather("the episodes", pickle.dumps({n: without_starts(e) for n, e in played.items()}))
        everything: dict[int, list[Episode]] = {}
        for rank, data in enumerate(of_ranks):
            everything |= played if rank == self.rank else pickle.loads(data)
        return [episode for number in range(len(chunks)) for episode in everything[number]]

    def play_first(self, play: Callable[[], list[Episode]], rng: np.random.Generator) -> list[Episode]:
        episodes, state = self._first(
            lambda: (play(), rng.bit_generator.state), lambda result: (without_starts(result[0]), result[1])
        )
        rng.bit_generator.state = state
        return episodes

    def agree(self, what: str, facts: Mapping[str, Any]) -> None:
        from envs.facts import differences, in_words

        of_ranks = self._gather(f"the {what}", dict(facts))
        for rank, others in enumerate(of_ranks):
            if found := differences(of_ranks[0], others):
                changes = in_words([f"{name} {change}" for name, change in found.items()])
                raise ValueError(f"all ranks must have the same {what}, but rank {rank} differs from rank 0: {changes}")

    def seconds(self) -> dict[str, float]:
        waited, self._waited = self._waited, 0.0
        return {"time/ranks_s": waited}


class Replicas(Ranks):
    """Every rank has all weights. `parallel=replicas`, for models that fit into one GPU with their optimiser."""


@dataclass
class Shards(Ranks):
    """The weights, gradients and moments are divided among `size` ranks (None: all of them). `parallel=shards`.

    With a smaller `size`, such as the number of GPUs in a machine, each group of so many ranks has all weights.
    `offload` keeps them in the memory of the CPU between passes.
    """

    size: int | None = None
    offload: bool = False
    shards_weights = True

    def check(self, groups: int, group_size: int) -> None:
        super().check(groups, group_size)
        if self.size is not None and (self.size < 1 or self.ranks % self.size):
            raise ValueError(
                f"parallel.size={self.size} ranks share the weights, which does not divide the {self.ranks} ranks of "
                "this run"
            )

    def place(self, model: Any, dtype: torch.dtype) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        from agents.policies.sharded import shard

        device = next(model.parameters()).device.type
        size = self.size or self.ranks
        if size == self.ranks:
            mesh = init_device_mesh(device, (self.ranks,), mesh_dim_names=("shard",))
        else:
            mesh = init_device_mesh(device, (self.ranks // size, size), mesh_dim_names=("replicate", "shard"))
        shard(model, mesh, dtype, offload=self.offload)

    def sampler(self, policy: LocalPolicy) -> LocalPolicy:
        from agents.policies.local import SamplingCopy

        return SamplingCopy(policy)


@cache
def ranks_store() -> Any:
    """The key-value store that connects the ranks of one start by torchrun.

    Keys of an earlier start may still be in it, so each start has its own.
    """
    import torch.distributed as dist

    launch = Launch.of_environment()
    assert launch is not None
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=120)))  # type: ignore[attr-defined]
    return dist.PrefixStore(f"polyturn/{launch.restarts}", store)  # type: ignore[attr-defined]


def without_starts(episodes: Sequence[Episode]) -> list[Episode]:
    """The same episodes, whose turns have no `start`; turns that episodes share stay shared."""
    made: dict[int, Turn] = {}

    def stripped(turn: Turn) -> Turn:
        if id(turn) not in made:
            made[id(turn)] = turn if turn.start is None else replace(turn, start=None)
        return made[id(turn)]

    return [replace(episode, turns=[stripped(turn) for turn in episode.turns]) for episode in episodes]


def _is_of_a_collective(error: RuntimeError) -> bool:
    """Whether gloo or NCCL raised it; gloo has no class of errors."""
    return any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "Connection closed by peer", "ProcessGroup"))
