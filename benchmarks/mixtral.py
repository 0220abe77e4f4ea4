"""The training step against transformers' MixtralForCausalLM of the same size."""

from itertools import product
from typing import Any

from benchmarks.measure import BF16, FLOAT32, Bench, Run
from benchmarks.models import (
    LARGE,
    N_EMBD,
    N_HEAD,
    NUM_EXPERTS,
    RECIPE,
    TINY,
    TOP_K,
    VOCAB_SIZE,
    Size,
    ours,
)
from benchmarks.report import Goal, Result
from benchmarks.training import (
    WITHOUT_DROPOUT,
    contestant,
    step_result,
    train_ours,
    training_run,
)

INTERMEDIATE = 344
"""Three matrices of 128 x 344 instead of two of 128 x 512 with biases. 343 would give exactly the
same number of weights, but bf16 products need rows of 16 bytes."""

ATTENTION = "sdpa", "eager"
EXPERTS = "grouped_mm", "eager", "batched_mm"

MOST_GATHERED = 3e9
"""Bytes above which batched_mm, which copies weights per assignment, is not tried."""


def training_mixtral(bench: Bench) -> list[Result]:
    """The step against transformers' Mixtral of the same size, each side in its best setting."""
    results = []
    for size in bench.choose((RECIPE, LARGE), (TINY,)):
        work = f"step against Mixtral, {size}"
        theirs = bench.fastest(
            work,
            [
                contestant(
                    f"Mixtral ({attention}, {experts})",
                    train_mixtral,
                    size,
                    bench,
                    dtype,
                    attention,
                    experts,
                )
                for attention, experts, dtype in product(ATTENTION, EXPERTS, (FLOAT32, BF16))
                if experts != "batched_mm" or gathered_bytes(size) < MOST_GATHERED
            ],
        )
        mine = bench.fastest(
            work,
            [
                contestant("ours", train_ours, size, bench, dtype, **WITHOUT_DROPOUT)
                for dtype in (FLOAT32, BF16)
            ],
        )
        dropping = contestant("ours with dropout", train_ours, size, bench, mine.dtype)
        measured, with_dropout, mixtral = bench.race(work, mine, dropping, theirs)
        against = f"{theirs.name}, {theirs.dtype}"
        note = f"parameters {counts(size)}"
        for what, own in (("no dropout", measured), ("ours with dropout", with_dropout)):
            results.append(
                step_result(
                    bench,
                    f"{work}, {what}",
                    size,
                    mine.dtype,
                    own,
                    against,
                    mixtral,
                    Goal(">=", 2),
                    note=note,
                )
            )
    return results


def train_mixtral(size: Size, device: str, dtype: str, attention: str, experts: str) -> Run:
    model = mixtral(size, attention, experts).to(device)
    return training_run(model, lambda ids_BT: model(input_ids=ids_BT).logits, size, device, dtype)


def mixtral(size: Size, attention: str, experts: str) -> Any:
    """A Mixtral with random weights: Mixtral's rotary positions, RMSNorm and SwiGLU experts."""
    try:
        from transformers import MixtralConfig, MixtralForCausalLM
    except ImportError as error:
        raise ImportError("transformers is missing: pip install -e '.[bench]'") from error
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=N_EMBD,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=size.n_layer,
            num_attention_heads=N_HEAD,
            num_key_value_heads=N_HEAD,
            max_position_embeddings=size.block_size,
            num_local_experts=NUM_EXPERTS,
            num_experts_per_tok=TOP_K,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
            attn_implementation=attention,
            experts_implementation=experts,
        )
    )


def gathered_bytes(size: Size) -> float:
    """The copies of weights that batched_mm keeps for its backward pass."""
    return 4.0 * size.n_layer * size.tokens * TOP_K * 3 * N_EMBD * INTERMEDIATE


def counts(size: Size) -> str:
    """Total and active parameters of both, in millions."""
    theirs = mixtral(size, ATTENTION[0], EXPERTS[0])
    in_experts = sum(p.numel() for n, p in theirs.named_parameters() if ".experts." in n)
    total = sum(p.numel() for p in theirs.parameters())
    active = total - in_experts + in_experts * TOP_K // NUM_EXPERTS
    mine = ours(size, **WITHOUT_DROPOUT).count_parameters()
    return (
        f"{mine.total / 1e6:.3f} M ({mine.active / 1e6:.3f} M active), "
        f"Mixtral's {total / 1e6:.3f} M ({active / 1e6:.3f} M)"
    )
