"""The endpoint, by the client of OpenAI and by hand."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import BLOCK_SIZE, Live, alone, live, of_bytes, small

import makemoe
from makemoe.serve.batch import Batch
from makemoe.serve.limits import Limits
from makemoe.serve.text import Wish

LIMITS = Limits(rows=8, waiting=4, max_tokens=200, prompt=50, texts=6, told=1000, stops=2, stop=5)


@pytest.fixture(scope="module")
def model() -> makemoe.Model:
    return small()


@pytest.fixture(scope="module")
def tiny(model: makemoe.Model) -> Iterator[Live]:
    with live(model, LIMITS) as server:
        yield server


@pytest.fixture
def client(tiny: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        yield client


# -- the client of OpenAI


def test_a_completion_is_the_text_sampled_alone(
    client: openai.OpenAI, model: makemoe.Model
) -> None:
    done = client.completions.create(
        model="tiny", prompt="abc", max_tokens=40, temperature=0.8, top_p=0.9, seed=5, stop="ff"
    )
    wish = Wish("abc", 40, 0.8, None, 0.9, 5, ("ff",))
    assert done.choices[0].text == alone(model, wish)
    assert done.object == "text_completion"
    assert done.model == "tiny"
    assert done.usage is not None
    assert done.usage.prompt_tokens == 3
    assert done.usage.total_tokens == 3 + done.usage.completion_tokens


def test_a_stream_is_the_same_text_in_pieces(client: openai.OpenAI, model: makemoe.Model) -> None:
    wish = Wish("abc", 60, seed=9, echo=True)
    chunks = list(
        client.completions.create(
            model="tiny",
            prompt="abc",
            max_tokens=60,
            seed=9,
            echo=True,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, last = chunks
    assert "".join(chunk.choices[0].text for chunk in pieces) == alone(model, wish)
    assert [chunk.choices[0].finish_reason for chunk in pieces[-2:]] == [None, "length"]
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 60)
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_have_several_texts_each(
    client: openai.OpenAI, model: makemoe.Model, stream: bool
) -> None:
    given: dict[str, Any] = {"prompt": ["a", "bcd"], "n": 3, "max_tokens": 20, "seed": 7}
    texts = [""] * 6
    if stream:
        for chunk in client.completions.create(model="tiny", **given, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    else:
        for choice in client.completions.create(model="tiny", **given).choices:
            texts[choice.index] = choice.text
    wanted = [Wish(prompt, 20, seed=7 + n) for prompt in ("a", "bcd") for n in range(3)]
    assert texts == [alone(model, wish) for wish in wanted]


def test_a_prompt_is_counted_once(tiny: Live) -> None:
    usage = tiny.post(prompt=["a", "bcd"], n=3, max_tokens=5).json["usage"]
    assert usage == {"prompt_tokens": 4, "completion_tokens": 30, "total_tokens": 34}


def test_a_text_without_a_seed_tells_the_seed_that_gives_it_again(tiny: Live) -> None:
    first, second = (tiny.post(prompt="a", max_tokens=30).json for _ in range(2))
    assert first["seed"] != second["seed"]
    again = tiny.post(prompt="a", max_tokens=30, seed=first["seed"]).json
    assert again["choices"] == first["choices"]


def test_without_a_prompt_the_model_begins(tiny: Live, model: makemoe.Model) -> None:
    for given in ({}, {"prompt": ""}, {"prompt": None}, {"prompt": [""]}):
        got = tiny.post(max_tokens=12, seed=1, **given).json["choices"][0]["text"]
        assert got == alone(model, Wish("", 12, seed=1))


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "makemoe"
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client.models.retrieve("gpt")


def test_the_client_gets_errors_as_its_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"temperature -1\.0 is invalid") as caught:
        client.completions.create(model="tiny", prompt="a", temperature=-1.0)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.completions.create(model="gpt", prompt="a")


def test_a_text_of_bytes_comes_by_whole_characters() -> None:
    model = of_bytes()
    with live(model) as server:
        fields = {"prompt": "aé", "max_tokens": 60, "temperature": 1.5, "seed": 2}
        whole = server.post(**fields).json["choices"][0]
        body = server.post(**fields, stream=True, experts=True).body.decode()
    chunks = [json.loads(line[6:]) for line in body.split("\n\n")[:-2]]
    assert body.endswith("data: [DONE]\n\n")
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    told = [character for chunk in chunks for character in chunk["choices"][0]["experts"]]
    assert "".join(character["text"] for character in told) == whole["text"]
    assert whole["text"] == alone(model, Wish("aé", 60, 1.5, seed=2))


def test_experts_are_told_of_every_layer(tiny: Live) -> None:
    got = tiny.post(prompt="abc", max_tokens=2 * BLOCK_SIZE, experts=True, echo=True).json
    (choice,) = got["choices"]
    assert "".join(one["text"] for one in choice["experts"]) == choice["text"]
    for one in choice["experts"]:
        assert [layer is None for layer in one["layers"]] == [False, True, False]
        assert len(one["layers"][0]["experts"]) == 2
        assert sum(one["layers"][0]["weights"]) == pytest.approx(1, abs=1e-5)
        assert len(one["following"]) == 8
        assert 0 < sum(after["probability"] for after in one["following"]) <= 1.0001


# -- what is refused


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": -0.5}, "temperature", "temperature -0.5 is invalid: use 0 (greedy) or"),
        ({"temperature": "warm"}, "temperature", 'temperature "warm" is invalid'),
        ({"temperature": 10**400}, "temperature", "is invalid: use 0"),
        ({"temperature": True}, "temperature", "temperature true is invalid"),
        ({"top_p": 0}, "top_p", "use more than 0, at most 1"),
        ({"top_p": 1.01}, "top_p", "use more than 0, at most 1"),
        ({"top_k": 0}, "top_k", "top_k 0 is invalid: use 1 or more"),
        ({"max_tokens": 0}, "max_tokens", "use 1 to 200 tokens"),
        ({"max_tokens": 201}, "max_tokens", "use 1 to 200 tokens"),
        ({"max_tokens": 1.5}, "max_tokens", "use 1 to 200 tokens"),
        ({"seed": -1}, "seed", "use 0 to 2**62 - 1"),
        ({"seed": 1 << 62}, "seed", "use 0 to 2**62 - 1"),
        ({"n": 0}, "n", "use 1 or more"),
        ({"n": 7}, "n", "1 prompts x n 7 are too many texts: 6 at most"),
        ({"prompt": ["a"] * 4, "n": 2}, "n", "4 prompts x n 2 are too many texts"),
        ({"prompt": "a" * 51}, "prompt", "prompt has 51 characters: 50 at most"),
        ({"prompt": ["a", "b" * 60]}, "prompt", "prompt has 60 characters: 50 at most"),
        ({"prompt": []}, "prompt", "neither a string nor a list of strings"),
        ({"prompt": [1, 2]}, "prompt", "neither a string nor a list of strings"),
        ({"prompt": "aé"}, "prompt", "character 'é' (U+00E9) at offset 1 is not one of the 11"),
        ({"prompt": "a\ud800"}, "prompt", "character '\\ud800' (U+D800)"),
        ({"stop": [1]}, "stop", "neither a string nor a list of strings"),
        ({"stop": ""}, "stop", "would end every text at once"),
        ({"stop": ["a", "b", "c"]}, "stop", "2 strings of 5 characters at most"),
        ({"stop": "abcdef"}, "stop", "2 strings of 5 characters at most"),
        ({"stream": 1}, "stream", "stream 1 is invalid: use true or false"),
        ({"stream_options": {"usage": True}}, "stream_options", "include_usage"),
        ({"model": 3}, "model", "model 3 is invalid: use a string"),
        ({"logprobs": 6}, "logprobs", "logprobs 6 is invalid: use 0 to 5"),
        (
            {"max_tokens": 200, "n": 6, "experts": True},
            "max_tokens",
            "of 1,200 tokens are too many",
        ),
        ({"max_tokens": 200, "n": 6, "logprobs": 0}, "max_tokens", 'or send "stream": true'),
        (
            {"prompt": "a" * 50, "max_tokens": 160, "n": 6, "logprobs": 0, "echo": True},
            *("max_tokens", "tokens are too many at once"),
        ),
        ({"suffix": "x"}, "suffix", "suffix is not supported"),
        ({"best_of": 2}, "best_of", "best_of is not supported"),
        ({"max_token": 3}, '"max_token"', 'unknown field "max_token": did you mean max_tokens?'),
        ({"x" * 99: 3}, None, "unknown field"),
    ],
)
def test_a_wrong_field_is_named(
    tiny: Live, fields: dict[str, Any], param: str | None, words: str
) -> None:
    reply = tiny.post(**fields)
    assert reply.status == 400
    assert words in reply.error
    assert len(reply.error) < 250
    if param is not None:
        assert reply.json["error"]["param"] == param
    assert reply.json["error"]["type"] == "invalid_request_error"


def test_fields_of_openai_that_change_nothing_are_taken(tiny: Live) -> None:
    neutral = {"best_of": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}}
    neutral |= {"user": "a person"}
    assert tiny.post(max_tokens=1, suffix=None, logprobs=None, **neutral).status == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"prompt": "a}', "not valid JSON"),
        (b'{"temperature": NaN}', "not valid JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        (b"[" * 60_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'"abc"', "not a JSON object"),
    ],
)
def test_malformed_json_is_refused(tiny: Live, body: bytes, words: str) -> None:
    reply = tiny.ask("POST", "/v1/completions", body)
    assert reply.status == 400
    assert words in reply.error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/page/../../secret", 404),
        ("GET", "/page/__init__.py", 404),
        ("GET", "/v1/models/gpt", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/health", 405),
    ],
)
def test_other_paths_and_methods_are_refused_in_json(
    tiny: Live, method: str, path: str, status: int
) -> None:
    reply = tiny.ask(method, path)
    assert reply.status == status
    assert reply.error


def test_health_tells_how_busy_it_is(tiny: Live) -> None:
    tiny.wait_idle()
    assert tiny.ask("GET", "/health").json == {"status": "ok", "running": 0, "waiting": 0}


def test_a_full_queue_says_when_to_try_again(model: makemoe.Model) -> None:
    with live(model, Limits(rows=1, waiting=1)) as server:
        reply = server.post(prompt=["a", "b", "c"])
        assert reply.status == 503
        assert reply.headers["retry-after"] == "1"
        assert "waiting already: try again later" in reply.error
        assert reply.json["error"]["type"] == "overloaded_error"
        assert server.post(prompt=["a", "b"]).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_ends(model: makemoe.Model, stream: bool) -> None:
    with live(model, Limits(seconds=1, max_tokens=10**6)) as server:
        reply = server.post(prompt="a", max_tokens=10**6, stream=stream)
        server.wait_idle()
    if not stream:
        assert reply.status == 503
        assert "not complete after 1 seconds" in reply.error
        return
    assert reply.status == 200
    *_, last, nothing = reply.body.split(b"\n\n")
    assert nothing == b""
    assert "not complete" in json.loads(last.removeprefix(b"data: "))["error"]["message"]


def test_a_failure_within_a_stream_is_an_error_of_the_client(
    model: makemoe.Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, calls = Batch.step, 0

    def fails(batch: Batch) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError("a secret")
        return step(batch)

    monkeypatch.setattr(Batch, "step", fails)
    with live(model) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        chunks = client.completions.create(model="tiny", prompt="a", max_tokens=90, stream=True)
        with pytest.raises(openai.APIError, match="sampling failed: RuntimeError"):
            list(chunks)
        assert server.post(prompt="a").status == 200
    assert "secret" not in capsys.readouterr().err


def test_a_bug_is_an_error_in_json_that_shows_no_text(
    model: makemoe.Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr("makemoe.serve.app.asked", fails)
    with live(model) as server:
        reply = server.post(prompt="a")
        assert server.ask("GET", "/health").status == 200
    assert reply.status == 500
    assert reply.error == "this is a bug in makemoe: ZeroDivisionError"
    assert capsys.readouterr().err.startswith("makemoe: this is a bug: ZeroDivisionError at test_")


# -- what is logged


def test_no_text_is_logged_unless_asked_for(
    model: makemoe.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for log in ("none", "requests", "text"):
        with live(model, log=log) as server:
            text = server.post(prompt="abcde", max_tokens=30, seed=1).json["choices"][0]["text"]
            server.post(prompt="abcde", max_tokens=30, seed=1, stream=True)
            server.post(prompt="abcde\u00e9")
            server.wait_idle()
        said[log] = capsys.readouterr().err
    assert said["none"] == ""
    assert "abcde" not in said["requests"]
    lines = [json.loads(line.partition("request ")[2]) for line in said["requests"].splitlines()]
    assert [line["completion_tokens"] for line in lines] == [30, 30]
    assert {line["ended"] for line in lines} == {"done"}
    for line in said["text"].splitlines():
        told = json.loads(line.partition("request ")[2])
        assert told["prompts"] == ["abcde"]
        assert told["sampled"] == [text]
