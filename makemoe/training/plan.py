"""A lower bound of the memory that training and evaluation need."""

from dataclasses import dataclass

from makemoe.model.block import Architecture
from makemoe.model.budget import Need, Plan, needs_here
from makemoe.model.footprint import FLOAT, Footprint
from makemoe.training.metrics import DRIFT_TOKENS

PROCESS = 250 << 20
"""Minimum memory of a process that has imported Lightning."""

WORKER = 4 << 20
"""Minimum memory of a data loading process, which shares most of its memory."""

ID = 8
"""Bytes per token id."""


@dataclass(frozen=True)
class Steps(Plan):
    """Training, if there is an optimizer, and evaluation.

    Attributes:
        batch_size: windows per step, over all processes.
        eval_batch_size: windows per step in evaluation, per process.
        devices: processes on this machine.
        num_nodes: machines.
        num_workers: processes that load data, per process.
        sample_tokens: length of the text sampled at each validation.
        steps: optimizer steps; -1: no limit; 0: evaluation only.
        moments: numbers that the optimizer stores per weight, rounded down.
        outer_moments: the same per weight of the embedding and the output layer; None: as many.
        averages: whether an average of the weights is kept.
        weight_bytes: bytes per weight in training.
        number_bytes: bytes per number of the activations.
        eval_windows: number of windows that are evaluated, over all processes.
        card: memory of each process's own device in bytes; None: they use this machine's.
        shards: number of processes that weights, gradients and moments are divided among.
    """

    batch_size: int = 16
    eval_batch_size: int = 64
    devices: int = 1
    num_nodes: int = 1
    num_workers: int = 0
    sample_tokens: int = 0
    steps: int = 0
    moments: int = 0
    outer_moments: int | None = None
    averages: bool = False
    weight_bytes: int = FLOAT
    number_bytes: int = FLOAT
    eval_windows: int = 0
    card: int | None = None
    shards: int = 1

    def needs(self, model: Architecture, size: Footprint) -> list[Need]:
        """The memory for building the weights, and the peak memory of a run."""
        alone = {"processes": PROCESS + self.num_workers * WORKER}
        built = {"weights": size.built}
        at_once = (
            self.training(model, size),
            self.update(size) if self.steps == 1 else {},
            self.evaluation(model),
            self.sampling(model, size),
        )
        largest = max(at_once, key=lambda parts: sum(parts.values()))
        running = self.standing(size) | largest
        if self.card is not None:
            here = needs_here(built | alone, self.devices)
            return [*here, Need(running, self.card, "each device has")]
        if sum(built.values()) > sum(running.values()):
            running = built
        return needs_here(running | alone, self.devices)

    def sizes(self) -> dict[str, int]:
        """The sizes the user may set, with their default values."""
        return {
            "batch_size": 16,
            "eval_batch_size": 64,
            "devices": 1,
            "num_workers": 1,
            "sample_tokens": 300,
        }

    @property
    def processes(self) -> int:
        """Number of processes that share a batch."""
        return self.devices * self.num_nodes

    def standing(self, size: Footprint) -> dict[str, int]:
        """Memory that stays in use between steps."""
        here = self.of_each_weight(size) + size.buffers * self.weight_bytes + size.objects
        # From the second step on, the previous gradients still exist in the forward pass.
        return {"weights": here} | (self.update(size) if self.steps != 1 else {})

    def update(self, size: Footprint) -> dict[str, int]:
        """Memory of the optimizer besides the weights, and of their average."""
        if not self.steps:
            return {}
        one = self.of_each_weight(size)
        of_outer = self.moments if self.outer_moments is None else self.outer_moments
        state = (size.parameters - size.outer) * self.moments + size.outer * of_outer
        moments = state * self.weight_bytes // self.shards
        averaged = {"average": size.parameters * FLOAT // self.shards} if self.averages else {}
        return {"gradients": one, "optimizer state": moments} | averaged

    def of_each_weight(self, size: Footprint) -> int:
        """Bytes for one number per weight."""
        return size.parameters * self.weight_bytes // self.shards

    def training(self, model: Architecture, size: Footprint) -> dict[str, int]:
        """Memory of a training step at the end of its forward pass."""
        if not self.steps:
            return {}
        tokens = self.batch_size // self.processes * model.block_size
        per_token = size.kept * self.number_bytes + scores(model, held=5) + 2 * ID
        per_token += model.vocab_size * (self.number_bytes + FLOAT)
        return {"activations": tokens * per_token, "batches": self.batch_size * ID}

    def evaluation(self, model: Architecture) -> dict[str, int]:
        """Memory of an evaluation step at the end of its forward pass."""
        rows = min(self.eval_batch_size, -(-self.eval_windows // self.processes))
        loss = model.vocab_size * (self.number_bytes + FLOAT) + scores(model, held=2)
        per_token = max(loss, scores(model, held=5)) + 2 * ID
        windows = max(1, DRIFT_TOKENS // model.block_size)
        drift = 2 * 4 * windows * model.block_size * model.routed_layers * model.top_k
        return {"evaluation": rows * model.block_size * per_token + drift}

    def sampling(self, model: Architecture, size: Footprint) -> dict[str, int]:
        """Memory of sampling a text: keys, values and tokens."""
        if not self.sample_tokens:
            return {}
        cache = size.cached * model.block_size * self.weight_bytes
        return {"sampling": cache + self.sample_tokens * ID}


def scores(model: Architecture, held: int) -> int:
    """Bytes per token of the routings of all routers.

    Args:
        model: the sizes.
        held: how many numbers per expert exist at once: 2 in a routing, and 3 more where layers are
            stacked for the metrics.
    """
    copies = held // 2  # of the experts chosen and their weights
    return model.routed_layers * FLOAT * (held * model.num_experts + copies * 3 * model.top_k)
