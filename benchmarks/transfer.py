"""Measure the transfer rate between two processes. A part of `benchmarks.gpu` in its own module, for fast imports."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing


def transfer(backend: str, size: int, folder: Path, repeats: int = 5) -> float:
    """GB/s of a broadcast of `size` bytes from one process to another; with NCCL each has a GPU."""
    torch.multiprocessing.spawn(broadcast, (2, backend, size, folder, repeats), nprocs=2)
    seconds = json.loads((folder / "seconds.json").read_text())
    return float(f"{size / statistics.median(seconds) / 1e9:.4g}")


def broadcast(rank: int, world: int, backend: str, size: int, folder: Path, repeats: int) -> None:
    """What each of `world` processes does. The first broadcast connects them and is not timed."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    torch.distributed.init_process_group(backend, f"file://{folder}/rendezvous", rank=rank, world_size=world)
    weights, seconds = torch.zeros(size, dtype=torch.uint8, device=device), []
    for _ in range(1 + repeats):
        torch.distributed.barrier()
        start = time.perf_counter()
        torch.distributed.broadcast(weights, 0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(seconds[1:]))
    torch.distributed.destroy_process_group()
