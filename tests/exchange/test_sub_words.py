"""Sub-words in a folder of transformers: the same ids, the same texts, the same end of a text."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bpe import SIZE, TEXT, fitted, held
from counterparts import MIXTRAL, checkpoint_of, model_of
from hypothesis import given, settings
from hypothesis import strategies as st

from makemoe.checkpoint.inference import rebuilt
from makemoe.data.bpe import BPETokenizer
from makemoe.data.tokenizer import ByteTokenizer, Tokenizer
from makemoe.errors import CheckpointError
from makemoe.exchange.export import export
from makemoe.exchange.take import take
from makemoe.model.generate import Sampler, generate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="the extra `bench` is not installed")

TOKENIZERS: dict[str, Tokenizer] = {
    "sub-words": fitted(),
    "sub-words without an end": fitted(end_of_text=None),
    "bytes with an end": ByteTokenizer(end_of_text=True),
}
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text("aAt'KIeN \n\r\t0漢ß.<|>")
FEW = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers itself
        yield


@pytest.fixture(scope="module", params=TOKENIZERS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Any]:
    """A tokenizer, and what transformers loads from a folder that has it."""
    folder = tmp_path_factory.mktemp("both") / "out"
    exported(TOKENIZERS[request.param], folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return TOKENIZERS[request.param], theirs


def exported(tokenizer: Tokenizer, folder: Path, **changes: Any) -> Any:
    """A model of this tokenizer, and the folder it was exported to."""
    parts = MIXTRAL | {"vocab_size": tokenizer.vocab_size} | changes
    model = model_of(parts)
    export(checkpoint_of(model, parts, tokenizer), "x.ckpt", folder)
    return model


@pytest.mark.parametrize("case", TOKENIZERS)
def test_ids_texts_and_greedy_continuations_are_the_same(case: str, tmp_path: Path) -> None:
    ours = TOKENIZERS[case]
    model = exported(ours, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (TEXT, " the  king\r\n'tis\t12345 漢字\U0001f600", "a", "<|endoftext|>"):
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert (theirs.eos_token_id, theirs.bos_token_id) == (ours.end_of_text, ours.end_of_text)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    inputs = theirs("the k", return_tensors="pt")
    new = model.block_size - inputs["input_ids"].shape[1]
    greedy = other.generate(**inputs, max_new_tokens=new, do_sample=False)[0].tolist()
    own = generate(model, [ours.prompt("the k")], new, Sampler([0], temperature=0.0))[0]
    end = ours.end_of_text
    own = own[: own.index(end) + 1] if end in own else own
    assert greedy == [*ours.prompt("the k"), *own]


def test_the_end_of_a_text_ends_a_text_there_too(tmp_path: Path) -> None:
    ours = fitted()
    parts = MIXTRAL | {"vocab_size": SIZE}
    model = model_of(parts)
    assert ours.end_of_text == 0
    with torch.no_grad():
        model.head.weight[0] = 50 * model.head.weight.abs().mean(0)
    export(checkpoint_of(model, parts, ours), "x.ckpt", tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    found = []
    for prompt in ("a", "the", "k"):
        inputs = theirs(prompt, return_tensors="pt")
        ids = other.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
        own = generate(model, [ours.prompt(prompt)], 8, Sampler([0], temperature=0.0))[0]
        until = [*own[: own.index(0)], 0] if 0 in own else own
        assert ids == [*ours.prompt(prompt), *until]
        found.append(0 in own)
    assert any(found), "the test would show nothing"


@pytest.mark.parametrize("case", TOKENIZERS)
def test_what_was_exported_is_read_again(case: str, tmp_path: Path) -> None:
    ours = TOKENIZERS[case]
    exported(ours, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs.save_pretrained(tmp_path / "out")  # as transformers writes it
    _, tokenizer = rebuilt(take(tmp_path / "out").checkpoint, "x.ckpt")
    assert type(tokenizer) is type(ours)
    assert tokenizer.encode(TEXT).tolist() == ours.encode(TEXT).tolist()
    assert tokenizer.end_of_text == ours.end_of_text
    assert tokenizer.vocab_size == ours.vocab_size


def changed(folder: Path, **values: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_byte_level_step_after_the_ids_changes_nothing(tmp_path: Path) -> None:
    exported(fitted(), tmp_path / "out")
    changed(tmp_path / "out", post_processor={"type": "ByteLevel", "trim_offsets": False})
    _, tokenizer = rebuilt(take(tmp_path / "out").checkpoint, "x.ckpt")
    assert tokenizer.encode(TEXT).tolist() == fitted().encode(TEXT).tolist()


def test_an_end_that_is_no_special_token_is_none(tmp_path: Path) -> None:
    exported(fitted(), tmp_path / "out")
    path = tmp_path / "out" / "tokenizer_config.json"
    for named in ("the", ["x"], None, {"content": 3}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": named}))
        _, tokenizer = rebuilt(take(tmp_path / "out").checkpoint, "x.ckpt")
        assert tokenizer.end_of_text is None
    path.write_text(json.dumps({"eos_token": {"content": "<|endoftext|>", "lstrip": False}}))
    assert rebuilt(take(tmp_path / "out").checkpoint, "x.ckpt")[1].end_of_text == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"post_processor": {"type": "TemplateProcessing", "special_tokens": {"<s>": {}}}},
            "tokenizer.json: it adds tokens to every text, and makemoe adds none",
        ),
        (
            {
                "post_processor": {
                    "type": "Sequence",
                    "processors": [
                        {"type": "ByteLevel"},
                        {"type": "TemplateProcessing", "special_tokens": {"<s>": {}}},
                    ],
                }
            },
            "it adds tokens to every text",
        ),
        (
            {"normalizer": {"type": "Lowercase"}},
            "tokenizer.json: its vocabulary changes texts before they are encoded",
        ),
        (
            {"model": held()["model"] | {"byte_fallback": True}},
            "tokenizer.json: its vocabulary has a model with byte_fallback True",
        ),
        ({"model": {"type": "BPE"}}, "tokenizer.json: its vocabulary has a model whose vocab"),
        ({"model": {}}, "tokenizer.json: its vocabulary has a model whose vocab does not"),
    ],
)
def test_other_sub_words_are_refused_in_one_line(
    values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    exported(fitted(), tmp_path / "out")
    changed(tmp_path / "out", **values)
    with pytest.raises(CheckpointError) as told:
        take(tmp_path / "out")
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_tokens_that_the_tokenizer_lacks_are_left_out(tmp_path: Path) -> None:
    exported(fitted(), tmp_path / "out", vocab_size=SIZE)
    smaller = BPETokenizer(SIZE - 20).fit(TEXT)
    (tmp_path / "out" / "tokenizer.json").write_text(smaller.to_json())
    model, tokenizer = rebuilt(take(tmp_path / "out").checkpoint, "x.ckpt")
    assert model.vocab_size == tokenizer.vocab_size == SIZE - 20


def test_more_tokens_than_the_model_has_are_refused(tmp_path: Path) -> None:
    exported(fitted(), tmp_path / "out")
    larger = BPETokenizer(SIZE + 1).fit(TEXT * 2)
    (tmp_path / "out" / "tokenizer.json").write_text(larger.to_json())
    with pytest.raises(CheckpointError, match=f"a tokenizer of {SIZE + 1} tokens, but its model"):
        take(tmp_path / "out")


@FEW
@given(text=TEXTS)
def test_any_text_has_the_same_ids(both: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = both
    ids = ours.encode(text).tolist()
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == ours.decode(ids) == text
