"""What many readers get at once is what each would get alone."""

import asyncio
import gc
import random
import time
import weakref
from collections import deque
from typing import Any

import pytest
import torch
from serving import BLOCK_SIZE, LETTERS, Got, alone, of_bytes, sampled, small, whole, with_engine

import makemoe
from makemoe.errors import DataError, NotFiniteError
from makemoe.model.transformer import MoETransformer
from makemoe.serve.batch import Batch, Stream
from makemoe.serve.drawing import Drawing
from makemoe.serve.engine import Engine
from makemoe.serve.limits import BatchError, BusyError, Limits, StoppingError, TooLateError
from makemoe.serve.text import Wish


def wishes(seed: int, count: int, letters: str = LETTERS) -> list[Wish]:
    """Wishes that have nothing in common."""
    rng = random.Random(seed)
    return [
        Wish(
            prompt="".join(rng.choices(letters, k=rng.choice([0, 1, 3, BLOCK_SIZE, 30]))),
            max_tokens=rng.randint(1, 5 * BLOCK_SIZE),
            temperature=rng.choice([0.0, 0.7, 1.0, 1.6]),
            top_k=rng.choice([None, 1, 4, 99]),
            top_p=rng.choice([None, 0.5, 1.0]),
            seed=rng.choice([rng.randint(0, 99), 1 << 40]),
            stop=rng.choice([(), ("ab",), ("c", "dd")]),
            echo=rng.random() < 0.5,
            experts=rng.random() < 0.5,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("seed", range(3))
def test_a_text_is_the_one_sampled_alone(rows: int, seed: int) -> None:
    model, wanted = small(), wishes(seed, 12)
    for wish, got in zip(wanted, sampled(model, wanted, rows, pause_s=0.002), strict=True):
        assert got.text == alone(model, wish), wish
        assert got.finish in ("stop", "length")


def test_a_text_of_bytes_and_of_ended_documents_is_the_one_sampled_alone() -> None:
    model = of_bytes()
    wanted = [wish._replace(temperature=1.5) for wish in wishes(7, 12, "aé€\n")]
    # The token that ends a text becomes likely.
    model.net.head.bias.data[256] = 3.0
    got = sampled(model, wanted, 5)
    assert [one.text for one in got] == [alone(model, wish) for wish in wanted]
    assert "stop" in {one.finish for one in got}
    for wish, one in zip(wanted, got, strict=True):
        if wish.experts:
            assert "".join(c.text for c in one.characters) == one.text


def test_a_text_of_sub_words_is_the_one_sampled_alone() -> None:
    pytest.importorskip("tokenizers", reason="the extra `bpe` is not installed")
    import bpe

    model = small(bpe.fitted())
    wanted = [
        wish._replace(experts=True, temperature=2.5)
        for wish in wishes(3, 10, "KING the thee\n漢Öé")
    ]
    for wish, got in zip(wanted, sampled(model, wanted, 4), strict=True):
        assert got.text == alone(model, wish), wish
        assert "".join(c.text for c in got.characters) == got.text, wish
    lengths = {len(c.text) for got in sampled(model, wanted) for c in got.characters}
    assert len(lengths) > 2


def test_neighbours_change_nothing() -> None:
    model, wish = small(), Wish("abc", 40, seed=5)
    texts = {sampled(model, [*wishes(n, 6), wish], 4)[-1].text for n in range(3)}
    assert texts == {alone(model, wish)}


def test_prompts_that_wait_for_each_other_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("makemoe.serve.batch.PROMPT_TOKENS", BLOCK_SIZE + 1)
    model, wanted = small(), wishes(11, 10)
    got = sampled(model, wanted)
    assert [one.text for one in got] == [alone(model, wish) for wish in wanted]


@pytest.mark.parametrize(
    "parts", [{"dense_layers": []}, {"n_layer": 1, "dense_layers": [0]}, {"block_size": 1}]
)
def test_every_kind_of_model_can_be_served(parts: dict[str, Any]) -> None:
    model, wanted = small(**parts), wishes(2, 6)
    got = sampled(model, wanted, 3)
    assert [one.text for one in got] == [alone(model, wish) for wish in wanted]


# -- experts


def read_alone(model: makemoe.Model, context: str) -> tuple[list[Any], torch.Tensor]:
    """Experts and weights of the last character in each layer, and what may follow it."""
    ids = torch.from_numpy(model.tokenizer.encode(context).astype("int64"))
    with torch.no_grad():
        logits_BTV, routings = model.net(ids[None])
    found = [(r.experts_NK[-1].tolist(), r.weights_NK[-1].tolist()) for r in routings]
    return found, logits_BTV[0, -1].softmax(-1)


def test_experts_and_probabilities_are_those_of_the_model() -> None:
    model = small()
    wish = Wish("abca", BLOCK_SIZE - 4, seed=3, echo=True, experts=True)
    (got,) = sampled(model, [wish, *wishes(4, 5)])[:1]
    assert "".join(character.text for character in got.characters) == got.text
    for n, character in enumerate(got.characters):
        found, probs = read_alone(model, got.text[: n + 1])
        assert character.layers[1] is None
        for choice, (experts, weights) in zip(character.layers[::2], found, strict=True):
            assert choice is not None
            assert choice.experts == experts
            assert choice.weights == pytest.approx(weights, abs=1e-5)
        ids = [token for token, _ in character.following]
        assert [p for _, p in character.following] == pytest.approx(probs[ids].tolist(), abs=1e-5)
        assert sorted(probs.tolist())[-8:] == pytest.approx(sorted(probs[ids].tolist()), abs=1e-5)


@pytest.mark.parametrize("echo", [False, True])
def test_experts_are_told_of_the_shown_text_and_no_more(echo: bool) -> None:
    model = small()
    for wish in wishes(9, 10):
        told = wish._replace(echo=echo, experts=True)
        (got,) = sampled(model, [told])
        assert "".join(character.text for character in got.characters) == got.text, told
        unread = told.prompt[:-BLOCK_SIZE] if echo else ""
        if not got.characters:  # it begins with a stop text
            assert got.text == ""
            continue
        first, *others = got.characters
        assert first.layers or first.text == unread
        assert bool(first.layers) is (unread == "")
        assert all(c.layers and len(c.text) == 1 for c in others)


def test_experts_are_not_told_of_others_texts() -> None:
    got = sampled(small(), [wish._replace(experts=False) for wish in wishes(5, 8)])
    assert all(one.characters == [] for one in got)


def test_a_long_prompt_of_many_texts_takes_a_moment_only() -> None:
    prompt = "abc\n" * 8000

    async def use(engine: Engine) -> float:
        begin = time.process_time()
        engine.submit([Wish(prompt, seed=n, echo=True, experts=True) for n in range(64)])
        return time.process_time() - begin

    # Token by token, it took 14 seconds.
    assert with_engine(small(), use) < 1


# -- joining and leaving


def test_rows_in_use_are_the_first_ones_and_come_back() -> None:
    model = small()
    batch = Batch(model.net, 4)
    streams = [Stream([n], 3 + n, Drawing(n)) for n in range(4)]
    for stream in streams:
        batch.join(stream)
    assert len(batch) == 4
    left = []
    for _ in range(7):
        batch.step()
        left.append(sum(not stream.has_ended for stream in streams))
    assert left == [4, 4, 3, 2, 1, 0, 0]
    assert len(batch) == 0
    assert batch.streams == []


def test_the_first_token_comes_with_the_first_step_after_joining() -> None:
    batch = Batch(small().net, 64)
    batch.join(Stream([1], 50, Drawing(0)))
    batch.step()
    late = [Stream([2, 3], 5, Drawing(n)) for n in range(40)]
    for stream in late:
        batch.join(stream)
    assert {stream for stream, _ in batch.step().drawn} >= set(late)


def test_long_prompts_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("makemoe.serve.batch.PROMPT_TOKENS", 2 * BLOCK_SIZE)
    read: list[int] = []
    forward = MoETransformer.forward

    def counted(net: MoETransformer, ids_BT: torch.Tensor, *more: Any) -> Any:
        read.append(ids_BT.numel())
        return forward(net, ids_BT, *more)

    monkeypatch.setattr(MoETransformer, "forward", counted)
    batch = Batch(small().net, 64)
    first = Stream([1], BLOCK_SIZE, Drawing(0))
    batch.join(first)
    batch.step()
    for n in range(8):
        batch.join(Stream([n] * BLOCK_SIZE, 4, Drawing(n)))
    for _ in range(4):
        assert first in {stream for stream, _ in batch.step().drawn}
    assert max(read) == 2 * BLOCK_SIZE


def test_new_texts_and_full_contexts_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("makemoe.serve.batch.PROMPT_TOKENS", BLOCK_SIZE)
    batch = Batch(small().net, 64)
    for n in range(20):
        batch.join(Stream([n % 9], 10 * BLOCK_SIZE, Drawing(n)))
    while len(batch.behind) < 15:  # their contexts are full at about the same time
        batch.step()
    longest = 0
    for n in range(12):
        new = Stream([1, 2, 3], 1, Drawing(n))
        batch.join(new)
        before = len(batch.behind)
        assert new in {stream for stream, _ in batch.step().drawn}
        longest = max(longest, before)
    assert len(batch.behind) < longest


def test_a_client_may_hang_up_in_the_midst_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("makemoe.serve.batch.PROMPT_TOKENS", 1)  # one context a step

    class HangsUp(Stream):
        looks = 0

        @property
        def has_ended(self) -> bool:
            self.looks += 1
            return self.looks > 1

    batch = Batch(small().net, 4)
    gone = HangsUp([1], 9, Drawing(0))
    stays = [Stream([2], 2 * BLOCK_SIZE, Drawing(n)) for n in range(2)]
    gone.is_new = False
    batch.streams, batch.behind = [gone], deque([gone])
    for stream in stays:
        batch.join(stream)
    for _ in range(BLOCK_SIZE):
        batch.step()
    assert batch.streams == stays


def test_a_text_that_nobody_reads_frees_its_row() -> None:
    async def use(engine: Engine) -> Got:
        endless = engine.submit([Wish("a", 4096)])
        await endless[0].next()
        waiting = engine.submit([Wish("b", 5, seed=1)])
        engine.forget(endless)
        return await whole(*waiting)

    model = small()
    assert with_engine(model, use, Limits(rows=1)).text == alone(model, Wish("b", 5, seed=1))


def test_a_text_that_nobody_reads_is_not_sampled_if_it_still_waits() -> None:
    async def use(engine: Engine) -> int:
        first = engine.submit([Wish("a", 30)])
        engine.forget(engine.submit([Wish("b", 4096)] * 5))
        await whole(*first)
        await asyncio.sleep(0.01)
        return engine.drawn

    assert with_engine(small(), use, Limits(rows=1)) == 30


def test_nothing_is_left_of_texts_that_have_ended() -> None:
    async def use(engine: Engine) -> list[Any]:
        texts = engine.submit(wishes(1, 20))
        for text in texts[:10]:
            await whole(text)
        engine.forget(texts[10:])
        refs = list(map(weakref.ref, texts))
        text = None
        del texts, text
        await whole(*engine.submit([Wish("a", 3)]))
        assert not engine.running
        assert not engine.deadlines
        engine.batch.leave()
        assert not engine.batch.streams
        gc.collect()
        return [ref() for ref in refs if ref() is not None]

    assert with_engine(small(), use) == []


# -- what goes wrong


def test_places_are_limited_and_a_request_gets_all_or_none() -> None:
    async def use(engine: Engine) -> None:
        texts = engine.submit([Wish("a", 50)] * 4)
        with pytest.raises(BusyError, match="4 texts are waiting already"):
            engine.submit([Wish("a")] * 2)
        texts += engine.submit([Wish("a", 5)])
        for text in texts:
            assert (await whole(text)).finish == "length"
        engine.submit([Wish("a", 5)] * 2)

    with_engine(small(), use, Limits(rows=2, waiting=3))


def test_a_text_that_takes_too_long_ends_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(engine: Engine) -> None:
        slow, waiting = engine.submit([Wish("a", 4096)] * 2)
        for text in (slow, waiting):
            engine.deadlines[text] -= 0.9
            with pytest.raises(TooLateError, match="not complete after 1 seconds"):
                await whole(text)
        await asyncio.sleep(0.01)
        assert (await whole(*engine.submit([Wish("a", 3)]))).finish == "length"

    with_engine(small(), use, Limits(rows=1, seconds=1))


def test_logits_that_are_not_finite_end_their_own_text_alone() -> None:
    model = small()
    j = LETTERS.index("j")
    model.net.token_embedding.weight.data[j] = torch.inf
    model.net.head.bias.data[j] = -100  # so that only prompts have it
    wish = Wish("a", 5)
    expected = alone(model, wish)

    async def use(engine: Engine) -> None:
        good, bad = engine.submit([wish, wish._replace(prompt="j")])
        with pytest.raises(NotFiniteError, match="logits are not finite"):
            await whole(bad)
        assert (await whole(good)).text == expected
        # In the row where the bad one was, too.
        again = engine.submit([wish] * 2)
        assert [(await whole(text)).text for text in again] == [expected] * 2

    with_engine(model, use, Limits(rows=2))


def test_after_a_step_that_failed_the_next_request_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Batch.step
    fails = [RuntimeError("out of memory near 'a secret text'")]
    monkeypatch.setattr(Batch, "step", lambda batch: raised(fails) or step(batch))

    async def use(engine: Engine) -> str:
        (text,) = engine.submit([Wish("a", 3)])
        with pytest.raises(BatchError, match="sampling failed: RuntimeError"):
            await whole(text)
        return (await whole(*engine.submit([Wish("a", 3)]))).text

    model = small()
    assert with_engine(model, use) == alone(model, Wish("a", 3))
    assert capsys.readouterr().err == "makemoe: a step failed: RuntimeError\n"


def raised(errors: list[RuntimeError]) -> None:
    """Raise the next of the errors, if there is one."""
    if errors:
        raise errors.pop()


def test_stopping_ends_every_text() -> None:
    async def use(engine: Engine) -> None:
        texts = engine.submit([Wish("a", 4096)] * 3)
        await texts[0].next()
        engine.stop()
        for text in texts:
            with pytest.raises(StoppingError):
                await whole(text)
        with pytest.raises(StoppingError):
            engine.submit([Wish("a")])

    with_engine(small(), use, Limits(rows=2))


def test_an_unknown_character_is_named() -> None:
    async def use(engine: Engine) -> None:
        with pytest.raises(DataError, match=r"'é' \(U\+00E9\) at offset 1 is not one of the 11"):
            engine.submit([Wish("aé")])
        assert not engine.waiting

    with_engine(small(), use)
