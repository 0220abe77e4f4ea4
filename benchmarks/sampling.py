"""Times sampling at full context, against the plain model that recomputes it for every token.

In a long text, the package recomputes half a context, then adds tokens until the context is full,
and so on. Whole rounds are timed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from benchmarks.machine import bandwidth
from benchmarks.measure import FLOAT32, Bench, Contestant, Run
from benchmarks.models import DROPOUT, LARGE, NUM_EXPERTS, RECIPE, TINY, TOP_K, Size, batches, ours
from benchmarks.plain_moe import copy_of
from benchmarks.report import Goal, Result
from makemoe.model.generate import Sampler, generate

STREAMS = 64
PLAIN_TOKENS = 16
"""Few, because each costs the plain model the same."""


def sampling(bench: Bench) -> list[Result]:
    """Tokens per second of a long text, one stream and 64, against one plain stream."""
    results = []
    for size in bench.choose((RECIPE, LARGE._replace(n_layer=RECIPE.n_layer)), (TINY,)):
        work = f"sampling at {size.block_size} tokens of context"
        # A round is one token from the rebuilt cache and half a context more.
        a_round = size.block_size // 2 + 1
        tokens = a_round * max(1, 64 // a_round)
        kinds = (("one", sample_ours, tokens, 1), ("many", sample_ours, tokens, STREAMS))
        sides = [*kinds, ("plain", sample_plain, PLAIN_TOKENS, 1)]
        best = [
            bench.fastest(
                work,
                [
                    Contestant(
                        f"{name}, {threads} threads",
                        partial(sample, size, bench.device, count, streams, threads),
                        FLOAT32,
                        count * streams,
                    )
                    for threads in thread_counts(bench.device)
                ],
            )
            for name, sample, count, streams in sides
        ]
        one, many, plain = bench.race(work, *best)
        for streams, measured, bound in ((1, one, 20), (STREAMS, many, 100)):
            steps_per_s = measured.rate / streams
            share = steps_per_s * bytes_read(size, streams) / bandwidth(bench.device)
            results.append(
                Result(
                    f"{work}, {streams} stream{'s' * (streams > 1)}",
                    FLOAT32,
                    measured.rate,
                    "plain, 1 stream, float32",
                    plain.rate,
                    "tokens/s",
                    Goal(">=", bound),
                    share={"memory": share},
                    peak_mb=(measured.peak_mb, plain.peak_mb),
                )
            )
    return results


def thread_counts(device: str) -> list[int]:
    """The thread counts to try: one, or one per core."""
    return sorted({1, torch.get_num_threads()}) if device == "cpu" else [1]


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Set the number of CPU threads within the block and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def sample_ours(size: Size, device: str, count: int, streams: int, threads: int) -> Run:
    model = ours(size).to(device).eval()
    half = size.block_size // 2
    prompts = [x_BT[0, :half].tolist() for x_BT, _ in batches(size, streams, device)]

    def run() -> None:
        with thread_count(threads):
            generate(model, prompts, count, Sampler(range(streams)))

    return run


def sample_plain(size: Size, device: str, count: int, streams: int, threads: int) -> Run:
    model = copy_of(ours(size), DROPOUT).to(device).eval()
    prompt_BT = torch.stack([x_BT[0] for x_BT, _ in batches(size, streams, device)])

    def run() -> None:
        with thread_count(threads):
            model.generate(prompt_BT, count)

    return run


def bytes_read(size: Size, streams: int) -> float:
    """Minimum bytes of weights and cache that a step of all streams reads, at half a context."""
    net = ours(size)
    total, active = net.count_parameters()
    in_experts = (total - active) * NUM_EXPERTS / (NUM_EXPERTS - TOP_K)
    # Probability that no stream chose an expert, if all experts are equally likely.
    met = 1 - (1 - TOP_K / NUM_EXPERTS) ** streams
    cache = 2 * size.n_layer * net.n_embd * streams * size.block_size * 3 / 4
    return 4 * (total - in_experts * (1 - met) + cache)
