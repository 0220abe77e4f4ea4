"""`makemoe.load`: what a model does in Python is what the commands do."""

import io
import json
import math
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainers

import makemoe
from makemoe.checkpoint.format import read, write
from makemoe.cli import main
from makemoe.data.corpus import load_text
from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer
from makemoe.errors import (
    CheckpointError,
    DataError,
    MissingPackageError,
    NotFiniteError,
    UsageError,
)
from makemoe.model.transformer import MoETransformer
from makemoe.run import CHECKPOINT_VARIABLE

BLOCK_SIZE = 8
TEXT = "To be, or not to be:\nthat is the question."
SEPARATOR = "\n---\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tiny model was trained, of three layers, the second one dense."""
    folder = tmp_path_factory.mktemp("library")
    parts = {"n_layer": 3, "n_embd": 16, "dense_layers": [1]}
    with warnings.catch_warnings():  # Lightning advises on loaders, and calls torch in old ways
        warnings.simplefilter("ignore")
        run = folder / "checkpoints" / "tiny"
        trainers.run(run, parts=parts, max_steps=4, val_check_interval=2)
    return folder


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> makemoe.Model:
    monkeypatch.chdir(folder)
    return makemoe.load("best")


def printed(*arguments: str) -> str:
    """What a command prints, in this process."""
    with redirect_stdout(io.StringIO()) as out:
        assert main(arguments) == 0
    return out.getvalue()


def test_importing_is_cheap_and_a_model_needs_no_lightning(folder: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import makemoe
assert set(sys.modules) - before == {"makemoe"}
assert {"load", "Model", "__version__"} <= set(dir(makemoe))
model = makemoe.load("last")
model.sample("To be", max_new_tokens=3), model.loss("To be"), model.routing("To be")
heavy = {"lightning", "torchmetrics", "jsonargparse", "matplotlib", "pandas"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_name_is_told_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'makemoe' has no attribute 'loda'"):
        _ = makemoe.loda  # type: ignore[attr-defined]


# -- sampling


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "To be", "seed": 3},
        {"prompt": "A prompt that is longer than the context", "temperature": 0.0},
        {"prompt": "To", "temperature": 0.7, "sample_top_k": 5, "sample_top_p": 0.8},
        {"prompt": "\n", "stop": "e"},
    ],
    ids=lambda options: "-".join(options) or "nothing",
)
def test_a_text_is_that_of_the_command(model: makemoe.Model, options: dict[str, Any]) -> None:
    flags = [f"--{name}={value}" for name, value in options.items()]
    shown = printed("predict", "--ckpt_path=best", "--max_new_tokens=30", *flags)
    text = model.sample(**options, max_new_tokens=30)
    assert text == shown if text.endswith("\n") else f"{text}\n" == shown
    assert "".join(model.stream(**options, max_new_tokens=30)) == text


def test_texts_are_those_of_the_command(model: makemoe.Model) -> None:
    flags = ("--prompt=To be", "--prompt=What", "--num_samples=3", "--seed=5")
    shown = printed("predict", "--ckpt_path=best", "--max_new_tokens=30", *flags)
    texts = model.samples(["To be", "What"], 3, max_new_tokens=30, seed=5)
    assert SEPARATOR.join(texts).rstrip("\n") == shown.rstrip("\n")
    alone = [
        model.sample(prompt, max_new_tokens=30, seed=seed)
        for prompt in ("To be", "What")
        for seed in (5, 6, 7)
    ]
    assert texts == alone
    assert model.samples("What", max_new_tokens=30, seed=5) == alone[3:4]
    assert model.samples([]) == []


def test_pieces_come_one_by_one_and_nothing_after_the_last_one_asked_for(
    model: makemoe.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    forward = MoETransformer.forward

    def counted(net: MoETransformer, ids_BT: torch.Tensor, *more: Any) -> Any:
        read.append(ids_BT.shape[1])
        return forward(net, ids_BT, *more)

    monkeypatch.setattr(MoETransformer, "forward", counted)
    pieces = model.stream("To be", max_new_tokens=10**12)
    assert read == []
    assert next(pieces) == "To be"
    assert read == []
    assert all(len(next(pieces)) == 1 for _ in range(3 * BLOCK_SIZE))
    assert len(read) == 3 * BLOCK_SIZE


def test_between_two_pieces_the_threads_and_gradients_are_the_callers(
    model: makemoe.Model,
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for piece in model.stream("To be", max_new_tokens=3):
            assert piece
            assert torch.get_num_threads() == 2
            assert torch.ones(1, requires_grad=True).mul(2).requires_grad
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"temperature": -1.0}, UsageError, "temperature -1.0 is invalid: use 0 (greedy) or more"),
        ({"temperature": math.nan}, UsageError, "temperature nan is invalid"),
        ({"max_new_tokens": 0}, UsageError, "max_new_tokens 0 is too small: use 1 or more"),
        ({"max_new_tokens": 2.5}, UsageError, "max_new_tokens 2.5 is not an integer"),
        ({"sample_top_k": 0}, UsageError, "sample_top_k 0 is too small"),
        ({"sample_top_p": 1.5}, UsageError, "sample_top_p 1.5 is out of range"),
        ({"seed": -1}, UsageError, "seed -1: invalid seed; use 0 to 2**62 - 1"),
        ({"stop": ["a", ""]}, UsageError, "stop is empty"),
        ({"prompt": "Tö be"}, DataError, "character 'ö' (U+00F6) at offset 1 is not one of the"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_sampled(
    model: makemoe.Model, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    for call in (model.sample, model.stream):
        with pytest.raises(error) as told:
            call(**options)
        assert words in str(told.value)
        assert len(str(told.value).splitlines()) == 1
    with pytest.raises(UsageError, match="num_samples 0 is too small"):
        model.samples("To", 0)


# -- loss


def test_a_loss_is_that_of_the_commands(model: makemoe.Model) -> None:
    text = load_text("sample")
    held_out = text[len(text) * 9 // 10 :]
    loss = model.loss(held_out)
    told = json.loads(printed("inspect", "--ckpt_path=best", "--json"))
    assert loss.nats_per_token == pytest.approx(told["val_loss"], rel=1e-12)
    assert loss.tokens == len(held_out) - 1


@pytest.mark.parametrize("length", [2, BLOCK_SIZE, BLOCK_SIZE + 1, BLOCK_SIZE + 2, len(TEXT)])
def test_a_loss_is_that_of_one_prediction_after_another(model: makemoe.Model, length: int) -> None:
    ids = model.tokenizer.encode(TEXT[:length]).tolist()
    nats = []
    for n in range(1, length):
        begin = (n - 1) // BLOCK_SIZE * BLOCK_SIZE  # windows are consecutive
        with torch.no_grad():
            logits = model.net(torch.tensor([ids[begin:n]]))[0][0, -1].double().numpy()
        nats.append(np.log(np.exp(logits).sum()) - logits[ids[n]])
    loss = model.loss(TEXT[:length])
    assert loss.nats_per_token == pytest.approx(np.mean(nats), rel=1e-6)
    assert loss.bits_per_byte == pytest.approx(np.mean(nats) / math.log(2), rel=1e-6)


def of(tokenizer: CharTokenizer | ByteTokenizer) -> makemoe.Model:
    sizes = {"block_size": BLOCK_SIZE, "n_layer": 1, "n_head": 1, "n_embd": 8, "num_experts": 3}
    return makemoe.Model(MoETransformer(tokenizer.vocab_size, **sizes), tokenizer)


@pytest.mark.parametrize("tokenizer", [CharTokenizer("é漢a"), ByteTokenizer()])
def test_bits_are_those_of_all_bytes_but_the_first_tokens(
    tokenizer: CharTokenizer | ByteTokenizer,
) -> None:
    loss = of(tokenizer).loss("漢éa漢")
    first = 3 if isinstance(tokenizer, CharTokenizer) else 1
    bits = loss.nats_per_token * loss.tokens / math.log(2)
    assert loss.bits_per_byte == pytest.approx(bits / (len("漢éa漢".encode()) - first))


@pytest.mark.parametrize(("text", "words"), [("", "'' has 0 tokens"), ("T", "'T' has 1 token")])
def test_a_text_with_nothing_to_predict_is_refused(
    model: makemoe.Model, text: str, words: str
) -> None:
    with pytest.raises(DataError, match=f"the text {words}: pass one of 2 or more"):
        model.loss(text)


def test_a_loss_that_is_not_finite_is_an_error(model: makemoe.Model) -> None:
    with torch.no_grad():
        model.net.head.weight.fill_(3e38)
        model.net.head.bias.fill_(-3e38)
    with pytest.raises(NotFiniteError, match="not finite"):
        model.loss(TEXT)


# -- routing


def test_the_routing_is_what_each_token_decides(model: makemoe.Model) -> None:
    table = model.routing(TEXT)
    assert table.layers == [0, 2]
    assert len(table) == 2 * len(TEXT)
    assert "".join(row.text for row in table if row.layer == 0) == TEXT
    ids = model.tokenizer.encode(TEXT).tolist()
    for n in range(len(TEXT)):
        begin = n // BLOCK_SIZE * BLOCK_SIZE
        with torch.no_grad():
            routings = model.net(torch.tensor([ids[begin : n + 1]]))[1]
        for row, layer, routing in zip(table[2 * n : 2 * n + 2], (0, 2), routings, strict=True):
            assert (row.position, row.token, row.text, row.layer) == (n, ids[n], TEXT[n], layer)
            assert list(row.experts) == routing.experts_NK[-1].tolist()
            assert row.weights == pytest.approx(routing.weights_NK[-1].tolist(), abs=1e-6)


def test_the_routing_is_that_of_the_trace(model: makemoe.Model, tmp_path: Path) -> None:
    prompt, trace = TEXT[:BLOCK_SIZE], tmp_path / "t.jsonl"
    printed(
        *("predict", "--ckpt_path=best", "--prompt", prompt, "--max_new_tokens=1"),
        *("--trace", str(trace)),
    )
    lines = [json.loads(line) for line in trace.read_text("utf-8").splitlines()][:BLOCK_SIZE]
    traced = [layer["experts"] for line in lines for layer in line["layers"] if layer]
    assert [list(row.experts) for row in model.routing(prompt)] == traced


def test_a_table_is_a_sequence_of_rows(model: makemoe.Model) -> None:
    table = model.routing(TEXT)
    rows = list(table)
    assert rows == table[:] == [table[n] for n in range(len(table))]
    assert table[-1] == rows[-1]
    assert table[::-5] == rows[::-5]
    with pytest.raises(IndexError):
        table[len(rows)]
    assert repr(table) == f"<RoutingTable: {len(TEXT)} tokens in 2 layers, 2 of 3 experts each>"
    assert list(model.routing("")) == []


def test_shares_are_the_weights_at_their_experts(model: makemoe.Model) -> None:
    table = model.routing(TEXT)
    shares_LNE = table.shares_LNE()
    assert shares_LNE.shape == (2, len(TEXT), 3)
    for row in table:
        share_E = shares_LNE[table.layers.index(row.layer), row.position]
        expected = dict(zip(row.experts, row.weights, strict=True))
        assert [expected.get(expert, 0) for expert in range(3)] == share_E.tolist()
    np.testing.assert_allclose(shares_LNE.sum(-1), 1, rtol=1e-6)


def test_bytes_that_are_no_character_complete_no_text() -> None:
    table = of(ByteTokenizer()).routing("é漢")
    assert [row.text for row in table] == ["", "é", "", "", "漢"]


def test_a_table_in_pandas_has_the_columns_of_a_row(model: makemoe.Model) -> None:
    table = model.routing(TEXT)
    frame = table.to_pandas()
    assert list(frame) == ["position", "token", "text", "layer", "experts", "weights"]
    assert [*frame.itertuples(index=False, name=None)] == [tuple(row) for row in table]
    choices = frame.explode(["experts", "weights"])
    assert len(choices) == 2 * len(table)
    assert list(model.routing("").to_pandas()) == list(frame)


def test_without_pandas_one_line_says_what_to_install(
    model: makemoe.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match=r"^to_pandas\(\) needs pandas: pip install pan"):
        model.routing(TEXT).to_pandas()


# -- loading


def test_a_model_is_found_by_file_run_and_word(model: makemoe.Model, folder: Path) -> None:
    names = "tiny", "last", "checkpoints/tiny/last.ckpt", folder / "checkpoints/tiny/last.ckpt"
    texts = {makemoe.load(name).sample(max_new_tokens=20) for name in names}
    assert len(texts) == 1
    assert makemoe.load("last", root=folder / "checkpoints").sample(max_new_tokens=20) in texts
    assert model.device.type == "cpu" or torch.cuda.is_available()
    assert makemoe.load("best", device="cpu").device.type == "cpu"
    assert "3 layers, 2 of 3 experts per token" in repr(model)


def test_loading_prints_nothing_and_tells_other_processes_nothing(
    model: makemoe.Model, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    makemoe.load("best").sample(max_new_tokens=2)
    assert capfd.readouterr() == ("", "")
    assert CHECKPOINT_VARIABLE not in os.environ


def test_a_model_computes_in_float32_whatever_it_was_trained_in(
    model: makemoe.Model, tmp_path: Path
) -> None:
    held = read("checkpoints/tiny/best.ckpt")
    held["state_dict"] = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in held["state_dict"].items()
    }
    write(held, tmp_path / "bf16.ckpt")
    halved = makemoe.load(tmp_path / "bf16.ckpt")
    assert {p.dtype for p in halved.net.parameters()} == {torch.float32}
    assert not halved.net.training


@pytest.mark.parametrize(
    ("path", "more", "words"),
    [
        ("tinny", {}, "path='tinny': no such file and no such run in checkpoints/; did you mean"),
        ("no.ckpt", {}, "no checkpoint no.ckpt"),
        ("checkpoints", {}, "checkpoints is a folder: pass a file in it"),
        ("checkpoints/tiny/metrics.csv", {}, "cannot read checkpoints/tiny/metrics.csv"),
        ("last", {"root": "no"}, "path='last': no run in no/; did you mean path='checkpoints/tiny"),
        ("best", {"device": "cuda:99"}, "device='cuda:99' is not available on this machine"),
        ("best", {"device": "toaster"}, "this machine: try device='cpu'"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line(
    model: makemoe.Model, path: str, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError if "device" in more else CheckpointError) as told:
        makemoe.load(path, **more)
    assert words in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_a_class_from_elsewhere_needs_trust(
    model: makemoe.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from makemoe.model.router import TopKRouter\nclass Mine(TopKRouter): pass\n"
    (tmp_path / "my_library_router.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    held = read("checkpoints/tiny/best.ckpt")
    held["hyper_parameters"]["router"] = {"class_path": "my_library_router.Mine", "init_args": {}}
    write(held, tmp_path / "mine.ckpt")
    with pytest.raises(CheckpointError) as told:
        makemoe.load(tmp_path / "mine.ckpt")
    assert str(told.value).endswith(
        "uses the class my_library_router.Mine: if you trust that code, "
        "add trust='my_library_router'"
    )
    assert "my_library_router" not in sys.modules
    for trust in ("my_library_router", ["my_library_router"]):
        mine = makemoe.load(tmp_path / "mine.ckpt", trust=trust)
        assert type(mine.net.routers()[0]).__name__ == "Mine"
    del sys.modules["my_library_router"]
