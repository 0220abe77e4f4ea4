"""The memory that training and evaluating take, as far as it is certain."""

from dataclasses import dataclass

from makemoe.model.block import Architecture
from makemoe.model.budget import Need, Plan, needs_here
from makemoe.model.footprint import FLOAT, Footprint
from makemoe.training.metrics import DRIFT_TOKENS

PROCESS = 250 << 20
"""Least memory of a process of its own that has imported Lightning."""

WORKER = 4 << 20
"""Least memory of a process that loads data, most of which it shares."""

ID = 8
"""Bytes of a token id."""


@dataclass(frozen=True)
class Steps(Plan):
    """Training, if there is an optimizer, and evaluating.

    Attributes:
        batch_size: windows per step, over all processes.
        eval_batch_size: windows per step in evaluation, per process.
        devices: processes on this machine.
        num_nodes: machines.
        num_workers: processes that load data, per process.
        sample_tokens: length of the text sampled at each validation.
        steps: optimizer steps, -1 without end; 0: evaluation alone.
        moments: numbers that the optimizer keeps per weight, rounded down.
        weight_bytes: of a weight in training.
        number_bytes: of what is computed in between.
        eval_windows: how many windows are evaluated, over all processes.
        card: memory of each process's own device in bytes; None: it is this machine's.
        shards: among how many processes weights, gradients and moments are divided.
    """

    batch_size: int = 16
    eval_batch_size: int = 64
    devices: int = 1
    num_nodes: int = 1
    num_workers: int = 0
    sample_tokens: int = 0
    steps: int = 0
    moments: int = 0
    weight_bytes: int = FLOAT
    number_bytes: int = FLOAT
    eval_windows: int = 0
    card: int | None = None
    shards: int = 1

    def needs(self, model: Architecture, size: Footprint) -> list[Need]:
        """The weights where they are built, and the largest moment of a run."""
        alone = {"processes": PROCESS + self.num_workers * WORKER}
        built = {"weights": size.built}
        at_once = (
            self.training(model, size),
            self.update(size) if self.steps == 1 else {},
            self.evaluation(model),
            self.sampling(model),
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
        """What the user may set, with the defaults."""
        return {
            "batch_size": 16,
            "eval_batch_size": 64,
            "devices": 1,
            "num_workers": 1,
            "sample_tokens": 300,
        }

    @property
    def processes(self) -> int:
        """How many share a batch."""
        return self.devices * self.num_nodes

    def standing(self, size: Footprint) -> dict[str, int]:
        """What is there from one step to the next."""
        here = self.of_each_weight(size) + size.buffers * self.weight_bytes + size.objects
        # From the second step on, gradients of the one before are there in the forward pass.
        return {"weights": here} | (self.update(size) if self.steps != 1 else {})

    def update(self, size: Footprint) -> dict[str, int]:
        """What the optimizer needs besides the weights."""
        one = self.of_each_weight(size)
        return {"gradients": one, "optimizer state": one * self.moments} if self.steps else {}

    def of_each_weight(self, size: Footprint) -> int:
        """Bytes of one number for each weight."""
        return size.parameters * self.weight_bytes // self.shards

    def training(self, model: Architecture, size: Footprint) -> dict[str, int]:
        """A step, at the end of its forward pass."""
        if not self.steps:
            return {}
        tokens = self.batch_size // self.processes * model.block_size
        per_token = size.kept * self.number_bytes + scores(model, held=5) + 2 * ID
        per_token += model.vocab_size * (self.number_bytes + FLOAT)
        return {"activations": tokens * per_token, "batches": self.batch_size * ID}

    def evaluation(self, model: Architecture) -> dict[str, int]:
        """A step of evaluation, at the end of its forward pass."""
        rows = min(self.eval_batch_size, -(-self.eval_windows // self.processes))
        loss = model.vocab_size * (self.number_bytes + FLOAT) + scores(model, held=2)
        per_token = max(loss, scores(model, held=5)) + 2 * ID
        windows = max(1, DRIFT_TOKENS // model.block_size)
        drift = 2 * 4 * windows * model.block_size * model.n_layer * model.top_k
        return {"evaluation": rows * model.block_size * per_token + drift}

    def sampling(self, model: Architecture) -> dict[str, int]:
        """A text being sampled: keys, values and tokens."""
        if not self.sample_tokens:
            return {}
        cache = 2 * model.n_layer * model.block_size * model.n_embd * self.weight_bytes
        return {"sampling": cache + self.sample_tokens * ID}


def scores(model: Architecture, held: int) -> int:
    """Bytes per token of the routings of all layers.

    Args:
        model: the sizes.
        held: how many numbers there are at once for each expert: 2 in a routing, and 3 more where
            layers are stacked to be measured.
    """
    copies = held // 2  # of the experts chosen and their weights
    return model.n_layer * FLOAT * (held * model.num_experts + copies * 3 * model.top_k)
