"""Name of the machine, and its limits, measured in the same run."""

import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import FLOAT32, rounds
from benchmarks.models import HIDDEN, N_EMBD, NUM_EXPERTS, TOP_K, Size

LIMIT_S = 0.4
"""Seconds to measure a limit."""


def machine_name() -> str:
    """A short slug: the GPU's name, or the CPU's model and cores."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = f"{cpu_model()} {os.cpu_count()} cores"
    name = re.sub(r"\((r|tm)\)|@.*?hz", "", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu_model() -> str:
    """The processor's name from the kernel."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def bf16_instructions() -> list[str]:
    """What the processor has for products in bf16, by the kernel's names."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        words = set()
    return sorted(words & {"avx512_bf16", "amx_bf16", "bf16"})


LIMITS: dict[str, float] = {}
"""Limits measured in this run, FLOP/s and bytes/s, by name."""


def matmul_rate(device: str, dtype: str, shape: tuple[int, int, int, int]) -> float:
    """Best FLOP/s of a batched product (E, M, K) x (E, K, N)."""
    E, M, K, N = shape
    name = f"{device} {dtype} matmul {E} x {M}x{K}x{N}, FLOP/s"
    if name not in LIMITS:
        kind = torch.float32 if dtype == FLOAT32 else torch.bfloat16
        a = torch.randn(E, M, K, device=device, dtype=kind)
        b = torch.randn(E, K, N, device=device, dtype=kind)
        LIMITS[name] = 2 * E * M * K * N / best(lambda: torch.bmm(a, b), device)
    return LIMITS[name]


def bandwidth(device: str) -> float:
    """Best bytes/s of copying 256 MB, counting reads and writes."""
    name = f"{device} memory, bytes/s"
    if name not in LIMITS:
        source = torch.ones(64 << 20, device=device)
        target = torch.empty_like(source)
        LIMITS[name] = 2 * 4 * source.numel() / best(lambda: target.copy_(source), device)
    return LIMITS[name]


def best(work: Callable[[], object], device: str) -> float:
    """Shortest time of one run, in seconds."""
    seconds = []
    for _ in rounds(LIMIT_S, least=3):
        begin = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def share_of_matmuls(
    flops: float, seconds: float, size: Size, device: str, dtype: str
) -> dict[str, float]:
    """A rate relative to the machine's limits, at the experts' shapes and at 2048^3."""
    per_expert = size.tokens * TOP_K // NUM_EXPERTS
    shapes = {
        "own shapes": (NUM_EXPERTS, per_expert, N_EMBD, HIDDEN),
        "2048^3": (1, 2048, 2048, 2048),
    }
    return {
        name: flops / seconds / matmul_rate(device, dtype, shape) for name, shape in shapes.items()
    }
