"""The rows of the table: each is a function from a `Bench` to lines."""

from collections.abc import Callable

from benchmarks.checkpoint import checkpoint
from benchmarks.data import tokenising
from benchmarks.measure import Bench
from benchmarks.mixtral import training_mixtral
from benchmarks.optimizer import optimizer
from benchmarks.parallel import collectives, experts_bytes
from benchmarks.predicted import predicted_step
from benchmarks.report import Result
from benchmarks.router_metrics import router_metrics
from benchmarks.sampling import sampling
from benchmarks.serving import serving
from benchmarks.sharded import memory_per_rank, saving_beside
from benchmarks.startup import predict
from benchmarks.time_to_loss import time_to_loss
from benchmarks.trainer import trainer
from benchmarks.training import dense_twin, moe_layer, training_step

Row = Callable[[Bench], list[Result]]

ON_ANY_DEVICE: tuple[Row, ...] = (
    training_step,
    training_mixtral,
    moe_layer,
    dense_twin,
    optimizer,
    sampling,
)
ON_CPU: tuple[Row, ...] = (
    predict,
    trainer,
    router_metrics,
    tokenising,
    checkpoint,
    saving_beside,
    memory_per_rank,
    experts_bytes,
    collectives,
    predicted_step,
)

ONLY_IF_NAMED: tuple[Row, ...] = (time_to_loss, serving)
"""Rows that take minutes."""

ROWS = (*ON_ANY_DEVICE, *ON_CPU, *ONLY_IF_NAMED)
