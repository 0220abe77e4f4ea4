"""Which backend computes the experts changes results by rounding only."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from modern import MODERN
from routings import random_routing
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from makemoe.errors import UsageError
from makemoe.model.backends import Auto, Backend, Grouped, Groups, Loop, Rounded
from makemoe.model.dispatch import dispatch
from makemoe.model.experts import Experts, MLPExperts
from makemoe.model.moe import MoELayer
from makemoe.model.router import TopKRouter
from makemoe.model.transformer import MoETransformer

TRACED = pytest.mark.filterwarnings(
    # The tracer looks at .grad of what it takes up again after a break.
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    # It advises against the first release of Python 3.13, in which it is right but slower.
    "ignore:Guards may run slower on Python",
)


def small_model(device: str, **changes: object) -> MoETransformer:
    sizes = {"block_size": 6, "n_layer": 2, "n_head": 2, "n_embd": 8, "num_experts": 4}
    return MoETransformer(11, **(sizes | changes)).to(device)


def results(model: MoETransformer, ids_BT: Tensor) -> list[Tensor]:
    """Logits, every gradient and every choice of a step with a seed of its own."""
    torch.manual_seed(3)
    logits, routings = model(ids_BT)
    gradients = torch.autograd.grad(logits.logsumexp(-1).sum(), list(model.parameters()))
    return [logits, *gradients, *(routing.experts_NK for routing in routings)]


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
@pytest.mark.parametrize("backend", ["loop", "padded", "rounded", "auto"])
def test_every_backend_gives_the_run_of_grouped_with_dropout_too(
    backend: str, capacity_factor: float | None, device: str
) -> None:
    ids_BT = torch.randint(11, (3, 6), device=device)
    options = {"dropout": 0.3, "capacity_factor": capacity_factor}
    grouped = small_model(device, dispatch="grouped", **options)
    other = small_model(device, dispatch=backend, **options)
    other.load_state_dict(grouped.state_dict())
    torch.testing.assert_close(
        results(other, ids_BT), results(grouped, ids_BT), rtol=1e-4, atol=1e-5
    )


@TRACED
@pytest.mark.parametrize("parts", [{}, MODERN | {"dense_layers": []}], ids=["usual", "modern"])
def test_compiled_equals_eager_in_outputs_and_gradients_with_dropout_too(
    device: str, parts: dict[str, object]
) -> None:
    model = small_model(device, n_layer=1, dropout=0.3, **parts)
    ids_BT = torch.randint(11, (3, 6), device=device)
    eager = results(model, ids_BT)
    # Traced and differentiated as for any compiler, run as it was traced.
    model.compile(backend="aot_eager")
    torch.testing.assert_close(results(model, ids_BT), eager, rtol=1e-4, atol=1e-5)


@TRACED
def test_grouped_says_that_it_cannot_be_compiled_for_a_cpu() -> None:
    layer = MoELayer(TopKRouter(8, 4, 2), MLPExperts(4, 8, 0.0), backend="grouped")
    layer.compile(backend="eager")
    with pytest.raises(UsageError, match=r"dispatch grouped cannot be compiled for a CPU"):
        layer(torch.randn(1, 6, 8))


@pytest.mark.parametrize(("n_embd", "hidden"), [(30, 32), (32, 30)])
def test_grouped_names_the_widths_it_does_not_take(n_embd: int, hidden: int) -> None:
    experts = MLPExperts(4, n_embd, 0.0, hidden=hidden)
    with pytest.raises(UsageError, match=r"dispatch grouped .* multiples of 4, or use"):
        dispatch(torch.randn(9, n_embd), random_routing(9, 4, 2), experts, Grouped())


def test_grouped_names_the_dtype_it_does_not_take() -> None:
    experts, x = MLPExperts(4, 8, 0.0).double(), torch.randn(9, 8, dtype=torch.float64)
    with pytest.raises(UsageError, match=r"dispatch grouped does not compute in float64: use"):
        dispatch(x, random_routing(9, 4, 2), experts, Grouped())


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "name"),
    [
        ("cpu", None, torch.float32, "grouped"),
        ("cpu", None, torch.bfloat16, "rounded"),
        ("cpu", None, torch.float64, "padded"),
        ("cuda", (8, 0), torch.bfloat16, "padded"),
        ("cuda", (8, 9), torch.bfloat16, "padded"),
        ("cuda", (9, 0), torch.bfloat16, "grouped"),
        ("cuda", (9, 0), torch.float16, "padded"),
        ("cuda", (9, 0), torch.float32, "padded"),
        ("cuda", (10, 0), torch.bfloat16, "grouped"),
        ("cuda", (12, 0), torch.bfloat16, "padded"),
        ("mps", None, torch.float32, "padded"),
    ],
)
def test_auto_takes_grouped_only_where_torch_has_a_fast_one(
    device: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    rows = SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert Auto().choice(rows, MLPExperts(4, 32, 0.0)).name == name


def test_the_backend_that_auto_takes_is_told() -> None:
    layer = MoELayer(TopKRouter(32, 4, 2), MLPExperts(4, 32, 0.0))
    assert layer.chosen_backend() == "grouped (auto)"
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.chosen_backend() == "rounded (auto)"
    layer = MoELayer(TopKRouter(32, 4, 2), MLPExperts(4, 32, 0.0), backend="loop")
    assert layer.chosen_backend() == "loop"


@pytest.mark.parametrize("counts", [[0, 1, 300, 21], [64, 64, 64, 64], [0, 0, 0, 1]])
def test_uneven_groups_are_rounded_up_each_by_itself(counts: list[int]) -> None:
    experts, lengths = MLPExperts(4, 8, 0.0), []
    experts.activation = lambda h: lengths.append(len(h)) or F.relu(h)
    Rounded()(torch.randn(sum(counts), 8), Groups(torch.tensor(counts)), experts)
    assert lengths == [sum(-(-count // 16) * 16 for count in counts)]


class Copied(TorchDispatchMode):
    """Counts the elements that are copied in tensors with the last two sizes of a weight."""

    def __init__(self, sizes: set[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.elements: Counter[tuple[torch.dtype, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, aten = func(*args, **(kwargs or {})), torch.ops.aten
        if func in (aten._to_copy.default, aten.clone.default, aten.copy_.default):
            source = args[func is aten.copy_.default]
            if set(out.shape[-2:]) == self.sizes:
                self.elements[source.dtype, out.dtype] += out.numel()
        return out


@pytest.mark.parametrize("backend", ["loop", "padded", "rounded", "grouped"])
def test_under_autocast_a_weight_is_copied_once_and_its_gradient_once(backend: str) -> None:
    # No group of rows is as long as a weight is wide.
    experts = MLPExperts(4, 8, 0.0, hidden=56)
    layer = MoELayer(TopKRouter(8, 4, 2), experts, backend=backend)
    with Copied({8, 56}) as copied:
        with torch.autocast("cpu", torch.bfloat16):
            y_BTD, _ = layer(torch.randn(1, 33, 8))
        y_BTD.sum().backward()
    weights = experts.fc_in.weight.numel() + experts.fc_out.weight.numel()
    wide, narrow = torch.float32, torch.bfloat16
    assert copied.elements == {(wide, narrow): weights, (narrow, wide): weights}


class Einsum(Backend):
    """Every expert for every row, of which one is chosen."""

    name = "einsum"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x_MD: Tensor, groups: Groups, experts: Experts) -> Tensor:
        self.calls += 1
        expert_M = torch.repeat_interleave(groups.counts_E)
        chosen_ME = F.one_hot(expert_M, experts.num_experts).to(x_MD.dtype)
        return experts(
            x_MD,
            lambda x, layer: (
                torch.einsum("mi,eio,me->mo", x, layer.weight, chosen_ME) + chosen_ME @ layer.bias
            ),
        )


def test_a_backend_may_be_given_as_an_object() -> None:
    ids_BT, backend = torch.randint(11, (3, 6)), Einsum()
    own = small_model("cpu", dropout=0.3, dispatch=backend)
    loop = small_model("cpu", dropout=0.3, dispatch="loop")
    own.load_state_dict(loop.state_dict())
    torch.testing.assert_close(results(own, ids_BT), results(loop, ids_BT), rtol=1e-4, atol=1e-5)
    assert backend.calls == 2
    assert own.blocks[0].moe.chosen_backend() == "einsum"


@pytest.mark.parametrize("wrong", ["fastest", None, Loop])
def test_what_is_no_backend_is_refused(wrong: object) -> None:
    with pytest.raises(
        UsageError, match=r"dispatch .* use auto, loop, padded, rounded, grouped or"
    ):
        small_model("cpu", dispatch=wrong)
