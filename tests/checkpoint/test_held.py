import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from makemoe.checkpoint.held import OF_TORCH, FreeText, Part, Reader
from makemoe.data.tokenizer import CharTokenizer, Tokenizer
from makemoe.errors import CheckpointError
from makemoe.model.attention import AttentionFactory
from makemoe.model.init import Initializer, ZeroOutputs
from makemoe.model.norm import RMSNorm
from makemoe.model.router import BiasedTopKRouter, Router, RouterFactory, TopKRouter
from makemoe.training.balance import Balancer, ZLoss

ROUTER = "makemoe.model.router."
BIASED = {"class_path": f"{ROUTER}BiasedTopKRouter", "init_args": {"score": "softmax"}}
OptimizerFactory = Callable[[Any], Optimizer]
ScheduleFactory = Callable[[Optimizer], LRScheduler]


def read(value: Any, annotation: Any, *trusted: str) -> Any:
    return Reader("my.ckpt", trusted).value(value, annotation, "setting")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (3, int),
        (3, float),
        (0.5, float),
        (math.inf, float),
        (True, bool),
        (None, int | None),
        (7, int | None),
        ("auto", Literal["auto", "loop"]),
        ([1, 2], Sequence[int]),
        ((0.9, 0.99), tuple[float, float]),
        ([0.9, 0.99], tuple[float | torch.Tensor, float | torch.Tensor]),
    ],
)
def test_plain_values_are_taken_as_they_are(value: Any, annotation: Any) -> None:
    fit = read(value, annotation)
    assert fit == (list(value) if isinstance(value, tuple) else value)
    assert not isinstance(fit, FreeText)


@pytest.mark.parametrize("text", ["a.txt", "{class_path: os.system}", "os.system", "01", ""])
def test_a_string_is_a_text_that_nobody_parses(text: str) -> None:
    fit = read(text, str | None)
    assert fit == text
    assert type(fit) is FreeText


@pytest.mark.parametrize(
    ("value", "annotation", "words"),
    [
        (True, int, "is True, not an integer"),
        (1.0, int, "not an integer"),
        (1 << 70, int, "an integer beyond 64 bits"),
        ("3", int, "is '3', not an integer"),
        ("nan", float, "not a number"),
        (1, bool, "not true or false"),
        (None, int, "is None, not an integer"),
        ([1], int, "is a list, not an integer"),
        ("relu6", Literal["relu", "gelu"], "is 'relu6', not one of 'relu', 'gelu'"),
        (["relu"], Literal["relu"], "not one of"),
        ([1, 2, 3], tuple[int, int], "a list of 2"),
        (3, Sequence[int], "not a list"),
        ([1, "2"], Sequence[int], "not an integer"),
        ({"a": 1}, dict[str, int], "may not set"),
        ("os.system", Callable[[str], int], "may not set"),
        ("os.system", type, "may not set"),
        ("a/b", Path, "may not set"),
        (b"x", str, "not a string"),
    ],
)
def test_a_value_of_another_kind_is_refused_in_words(
    value: Any, annotation: Any, words: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"^my\.ckpt .*setting.*{words}"):
        read(value, annotation)


def test_a_part_is_a_class_with_checked_arguments() -> None:
    part = read(BIASED, RouterFactory)
    assert part == Part(BIASED["class_path"], BiasedTopKRouter, {"score": "softmax"}, True)
    router = part.factory()(8, 4, 2)
    assert isinstance(router, BiasedTopKRouter)
    assert read(f"{ROUTER}TopKRouter", RouterFactory).cls is TopKRouter
    balancers = read([{"class_path": "makemoe.training.balance.ZLoss"}], Sequence[Balancer])
    assert [part.cls for part in balancers] == [ZLoss]
    tokenizer = {"class_path": "makemoe.data.tokenizer.CharTokenizer"}
    spelled = read(tokenizer | {"init_args": {"vocabulary": "[a"}}, Tokenizer | None)
    assert spelled.factory()().spec() == CharTokenizer("[a").spec()


def test_parts_within_parts_are_built_as_their_arguments_take_them() -> None:
    rms = {"class_path": "makemoe.model.norm.RMSNorm", "init_args": {"eps": 0.5}}
    spec = {
        "class_path": "makemoe.model.attention.CausalSelfAttention",
        "init_args": {"qk_norm": rms, "bias": False},
    }
    layer = read(spec, AttentionFactory).factory()(8, 2, 0.0, 0.0)
    assert (type(layer.norm_q), layer.norm_q.eps, layer.proj.bias) == (RMSNorm, 0.5, None)
    init = "makemoe.model.init."
    scheme = {"class_path": f"{init}GPT2Normal", "init_args": {"std": 0.25}}
    spec = {"class_path": f"{init}ZeroOutputs", "init_args": {"scheme": scheme}}
    zero = read(spec, Initializer | None).factory()()
    assert (type(zero), zero.scheme.std) == (ZeroOutputs, 0.25)
    with pytest.raises(
        CheckpointError, match=r"argument scheme of ZeroOutputs that is .*RMSNorm, which"
    ):
        read(spec | {"init_args": {"scheme": rms}}, Initializer | None)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("os.system", "--trust os$"),
        ("makemoe_evil.Router", "--trust makemoe_evil$"),
        ("makemoe.run.os.system", "cannot be imported"),
        ("makemoe.checkpoint.held.partial", "which is not a Router"),
        ("makemoe.cli.main", "which is not a Router"),
        (f"{ROUTER}Gone", "which does not exist"),
        (f"{ROUTER}Router", "which is not a Router"),  # abstract
        ("makemoe.model.experts.MLPExperts", "which is not a Router"),
        ("torch.nn.Linear", "may not name"),
        ("torch.hub.load", "may not name"),
        ("TopKRouter", "does not name a class"),
        ("makemoe..router", "does not name a class"),
        ("makemoe.model.router.TopKRouter\n", "does not name a class"),
        ("a." * 200 + "b", "does not name a class"),
        ({"init_args": {}}, "does not name a class"),
        ({"class_path": 3}, "does not name a class"),
        (BIASED | {"dict_kwargs": {}}, "does not name a class"),
        (BIASED | {"init_args": 3}, "has 3 for the arguments"),
        (BIASED | {"init_args": {"n_embd": 3}}, "does not take"),  # the model says how wide
        (BIASED | {"init_args": {"more": 3}}, "'more', which BiasedTopKRouter does not take"),
        (BIASED | {"init_args": {"score": "os.system"}}, "argument score of BiasedTopKRouter"),
        (7, "does not name a class"),
        (None, "does not name a class"),
    ],
)
def test_what_is_no_router_of_ours_is_refused(value: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(value, RouterFactory)


def test_trust_reaches_a_module_and_those_in_it_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = (
        "from makemoe.model.router import TopKRouter\n"
        "from typing import Callable\n"
        "class Own(TopKRouter):\n"
        "    def __init__(self, n_embd, num_experts, top_k, scale: float, word: str = 'a',\n"
        "                 call: Callable[[], int] = int, more=None):\n"
        "        super().__init__(n_embd, num_experts, top_k)\n"
        "        self.word = word\n"
    )
    (tmp_path / "mine_to_trust").mkdir()
    (tmp_path / "mine_to_trust" / "routers.py").write_text(source)
    (tmp_path / "imports_it.py").write_text("from mine_to_trust.routers import Own\n")
    own = {"class_path": "mine_to_trust.routers.Own", "init_args": {"scale": 2, "word": "[x"}}
    with pytest.raises(CheckpointError, match=r"--trust mine_to_trust\.routers"):
        read(own, RouterFactory, "mine_to", "mine_to_trust.router")
    assert "mine_to_trust.routers" not in sys.modules
    assert read(own, RouterFactory, "mine_to_trust").factory()(4, 2, 1).word == "[x"
    with pytest.raises(CheckpointError, match=r"defined in mine_to_trust\.routers"):
        read(own | {"class_path": "imports_it.Own"}, RouterFactory, "imports_it")
    for init_args, words in (
        ({"scale": 2, "call": "os.getpid"}, "argument call of Own that is 'os.getpid', which"),
        ({"scale": 2, "more": {"a": 1}}, "argument more"),
        ({}, "lacks the argument scale"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read(own | {"init_args": init_args}, RouterFactory, "mine_to_trust")


@pytest.mark.parametrize("path", sorted(OF_TORCH))
def test_listed_optimizers_and_schedules_are_there(path: str) -> None:
    module, _, name = path.rpartition(".")
    cls = getattr(sys.modules[module], name)
    required = {"step_size": 3, "milestones": [3, 4], "T_max": 9, "T_0": 3, "gamma": 0.5}
    required |= {"base_lr": 0.1, "max_lr": 0.2, "total_steps": 9}
    parameters = inspect.signature(cls).parameters
    needed = {n for n, p in parameters.items() if p.default is p.empty} | {"total_steps"}
    taken = {k: v for k, v in required.items() if k in needed & parameters.keys()}
    spec = {"class_path": path, "init_args": taken}
    optimizer = torch.optim.SGD([torch.zeros(2, 2, requires_grad=True)], momentum=0.9)
    if "lr_scheduler" in path:
        assert isinstance(read(spec, ScheduleFactory).factory()(optimizer), LRScheduler)
    else:
        assert isinstance(read(spec, OptimizerFactory).factory()([torch.zeros(2, 2)]), Optimizer)


def test_schedules_that_take_functions_are_not_listed() -> None:
    for name in ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"):
        path = f"torch.optim.lr_scheduler.{name}"
        with pytest.raises(CheckpointError, match="may not name"):
            read({"class_path": path}, ScheduleFactory)


def test_every_router_has_a_base_that_is_abstract() -> None:
    assert inspect.isabstract(Router)
