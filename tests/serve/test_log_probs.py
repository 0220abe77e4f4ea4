"""`logprobs`: how likely the model finds each token, against its logits for the whole text."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from serving import BLOCK_SIZE, Live, alone, live, of_bytes, small, with_engine

import makemoe
from makemoe.serve.engine import Engine
from makemoe.serve.text import Wish


@pytest.fixture(scope="module")
def model() -> makemoe.Model:
    return small()


@pytest.fixture(scope="module")
def tiny(model: makemoe.Model) -> Iterator[Live]:
    with live(model) as server:
        yield server


def expected(model: makemoe.Model, text: str) -> list[dict[str, float]]:
    """For each character but the first: the logarithms of all, by the model that reads it all."""
    ids = torch.tensor(model.tokenizer.encode(text), dtype=torch.long)[None]
    with torch.no_grad():
        logits_TV = model.net(ids)[0][0].double()
    log_probs = logits_TV - logits_TV.exp().sum(-1, keepdim=True).log()
    symbols = [model.tokenizer.decode([id]) for id in range(model.net.vocab_size)]
    return [dict(zip(symbols, row, strict=True)) for row in log_probs[:-1].tolist()]


def test_each_token_has_its_own_logarithm_and_those_of_the_likeliest(
    tiny: Live, model: makemoe.Model
) -> None:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none") as client:
        done = client.completions.create(
            model="tiny", prompt="abc", max_tokens=BLOCK_SIZE - 3, temperature=2, seed=5, logprobs=3
        )
    text, told = done.choices[0].text, done.choices[0].logprobs
    assert told is not None
    assert told.tokens == list(text)
    assert told.text_offset == list(range(len(text)))
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    rows = expected(model, "abc" + text)[2:]
    for one, own, top, row in zip(text, told.token_logprobs, told.top_logprobs, rows, strict=True):
        assert own == pytest.approx(row[one], abs=2e-5)
        likeliest = sorted(row, key=row.__getitem__, reverse=True)[:3]
        assert top == pytest.approx({key: row[key] for key in {*likeliest, one}}, abs=2e-5)


def test_with_echo_the_prompt_has_them_too_but_for_its_beginning(
    tiny: Live, model: makemoe.Model
) -> None:
    choice = tiny.post(prompt="abcdef", max_tokens=2, seed=1, echo=True, logprobs=0).json["choices"]
    told = choice[0]["logprobs"]
    first, *rest = told["token_logprobs"]
    assert first is None
    rows = expected(model, choice[0]["text"])
    own = [row[one] for row, one in zip(rows, choice[0]["text"][1:], strict=True)]
    assert rest == pytest.approx(own, abs=2e-5)
    assert told["top_logprobs"][0] is None
    assert [list(top) for top in told["top_logprobs"][1:]] == [[one] for one in told["tokens"][1:]]


def test_what_lies_before_the_context_is_one_token_without(tiny: Live) -> None:
    prompt = "abcdefghij" * 2
    told = tiny.post(prompt=prompt, max_tokens=1, echo=True, logprobs=1).json["choices"][0]
    unread = len(prompt) - BLOCK_SIZE
    assert told["logprobs"]["tokens"][:2] == [prompt[:unread], prompt[unread]]
    assert told["logprobs"]["text_offset"][:3] == [0, unread, unread + 1]
    is_told = [one is not None for one in told["logprobs"]["token_logprobs"]]
    assert is_told == [False, False] + [True] * BLOCK_SIZE


@pytest.mark.parametrize("server_model", [small, of_bytes])
@pytest.mark.parametrize("extra", [{}, {"echo": True}, {"experts": True}, {"stop": "d"}])
def test_a_stream_tells_the_same_in_pieces(server_model: Any, extra: dict[str, Any]) -> None:
    model = server_model()
    fields = {"prompt": "abc", "max_tokens": 40, "seed": 3, "logprobs": 2, **extra}
    with live(model) as server:
        (choice,) = server.post(**fields).json["choices"]
        body = server.post(**fields, stream=True).body.decode()
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert choice["text"] == alone(
        model, Wish("abc", 40, seed=3, stop=("d",) * ("stop" in extra), echo="echo" in extra)
    )
    pieces = [json.loads(line[6:])["choices"][0]["logprobs"] for line in body.split("\n\n")[:-2]]
    assert {key: [one for piece in pieces for one in piece[key]] for key in told} == told


def test_a_text_of_a_model_that_begins_has_no_token_for_that(tiny: Live) -> None:
    told = tiny.post(max_tokens=5, echo=True, logprobs=1).json["choices"][0]
    assert len(told["logprobs"]["tokens"]) == 5
    assert None not in told["logprobs"]["token_logprobs"]


def test_without_being_asked_for_there_are_none(tiny: Live) -> None:
    assert tiny.post(prompt="a", max_tokens=2).json["choices"][0]["logprobs"] is None


def test_texts_sampled_together_have_as_many_as_each_asked_for(model: makemoe.Model) -> None:
    async def use(engine: Engine) -> list[list[int]]:
        found = []
        for text in engine.submit([Wish("a", 5, logprobs=count) for count in (1, None, 3, 0)]):
            scores, finish = [], None
            while finish is None:
                piece = await text.next()
                scores, finish = scores + piece.scores, piece.finish
            found.append([len(score.likeliest) for _, score in scores if score is not None])
        return found

    assert with_engine(model, use) == [[1] * 5, [], [3] * 5, [0] * 5]
