"""The fields of a request for completions: what each may be, and what it means."""

import json
import math
import secrets
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NamedTuple, NoReturn

from makemoe.serve.limits import Limits
from makemoe.serve.refusals import Refusal
from makemoe.serve.text import Wish
from makemoe.sizes import SEED_END

LONGEST_VALUE = 40
"""Characters of a wrong value that an error shows."""

RANDOM_SEEDS = 1 << 31

SCORED = 5
"""Of how many of the most likely tokens the logarithms are told, at most; as in the OpenAI API."""


class Asked(NamedTuple):
    """A request.

    Attributes:
        model: the name of the model, if one is given.
        wishes: the texts: `n` for each prompt, prompt by prompt.
        n: texts per prompt.
        seed: of the first text of each prompt; the n-th, from 0, has `seed` + n.
        stream: whether the texts are sent as they come.
        usage: whether a stream ends with the numbers of tokens.
    """

    model: str | None
    wishes: list[Wish]
    n: int
    seed: int
    stream: bool
    usage: bool


def asked(body: bytes, limits: Limits, block_size: int) -> Asked:
    """Read a request.

    Args:
        body: of the request.
        limits: what the server takes.
        block_size: how many tokens of a prompt the model reads at most.

    Raises:
        Refusal: for a body that is not JSON, a field that is unknown or wrong, or more than the
            limits allow.
    """
    given = fields_of(body)
    for name, value in given.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise Refusal(400, f"{name} is not supported: leave it out", name)
        if name not in CHECKS and name not in NEUTRAL:
            near = get_close_matches(name, [*CHECKS, *NEUTRAL], n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise Refusal(400, f"unknown field {shown(name)}{hint}", shown(name))
    checked = {
        # As in the OpenAI API, null means the default.
        name: check(name, given[name], limits)
        for name, check in CHECKS.items()
        if given.get(name) is not None
    }
    prompts, n = checked.pop("prompt", [""]), checked.pop("n", 1)
    if len(prompts) * n > limits.texts:
        raise Refusal(
            400, f"{len(prompts)} prompts x n {n} are too many texts: {limits.texts} at most", "n"
        )
    model, stream = checked.pop("model", None), checked.pop("stream", False)
    is_told = checked.get("experts") or "logprobs" in checked
    told = len(prompts) * n * checked.get("max_tokens", Wish().max_tokens)
    if checked.get("echo"):
        # No tokenizer makes more tokens of a text than it has bytes.
        read = (len(prompt.encode(errors="surrogatepass")) for prompt in prompts)
        told += n * sum(min(block_size, own) for own in read)
    if is_told and not stream and told > limits.told:
        raise Refusal(
            400,
            f"experts and logprobs of {told:,} tokens are too many at once: {limits.told:,} at "
            'most, or send "stream": true',
            "max_tokens",
        )
    usage = checked.pop("stream_options", False)
    checked.pop("user", None)
    seed = checked.pop("seed", None)
    if seed is None:
        seed = secrets.randbelow(RANDOM_SEEDS)
    wishes = [
        Wish(prompt=prompt, seed=seed + number, **checked)
        for prompt in prompts
        for number in range(n)
    ]
    return Asked(model, wishes, n, seed, stream, usage)


def fields_of(body: bytes) -> dict[str, Any]:
    """The fields of a body in JSON."""
    try:
        given = json.loads(body, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        # The decoder's message shows nothing of the text.
        reason = error.args[0] if isinstance(error, json.JSONDecodeError) else "cannot be read"
        raise Refusal(400, f"the body is not valid JSON: {reason}") from None
    if not isinstance(given, dict):
        raise Refusal(400, "the body is not a JSON object: send {...} with a prompt")
    return given


def no_constant(name: str) -> NoReturn:
    """JSON has no NaN or Infinity."""
    raise ValueError(name)


def shown(value: Any) -> str:
    """A value as an error shows it."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def wrong(name: str, value: Any, mend: str) -> Refusal:
    """The refusal of a value."""
    return Refusal(400, f"{name} {shown(value)} is invalid: {mend}", name)


# -- what each field may be

Check = Callable[[str, Any, Limits], Any]
"""Called with a field, its value and the limits; returns the value, or raises a Refusal."""


def a_flag(name: str, value: Any, limits: Limits) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wrong(name, value, "use true or false")
    return value


def a_name(name: str, value: Any, limits: Limits) -> str:
    """A string."""
    if not isinstance(value, str):
        raise wrong(name, value, "use a string")
    return value


def an_integer(least: int, most: int, unit: str) -> Check:
    """A check for integers from `least` to `most`."""

    def check(name: str, value: Any, limits: Limits) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise wrong(name, value, unit)
        return value

    return check


def a_number(is_valid: Callable[[float], bool], mend: str) -> Check:
    """A check for numbers."""

    def check(name: str, value: Any, limits: Limits) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e300:
            raise wrong(name, value, mend)
        if not math.isfinite(value) or not is_valid(value):
            raise wrong(name, value, mend)
        return float(value)

    return check


def tokens(name: str, value: Any, limits: Limits) -> int:
    """A number of tokens to add."""
    most = limits.max_tokens
    found: int = an_integer(1, most, f"use 1 to {most} tokens")(name, value, limits)
    return found


def prompts(name: str, value: Any, limits: Limits) -> list[str]:
    """One prompt or several."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise Refusal(400, "prompt is neither a string nor a list of strings", name)
    longest = max(map(len, found))
    if longest > limits.prompt:
        raise Refusal(400, f"prompt has {longest:,} characters: {limits.prompt:,} at most", name)
    return found


def stops(name: str, value: Any, limits: Limits) -> tuple[str, ...]:
    """One stop text or several."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise Refusal(400, "stop is neither a string nor a list of strings", name)
    if len(found) > limits.stops or any(len(one) > limits.stop for one in found):
        raise Refusal(
            400, f"stop: {limits.stops} strings of {limits.stop} characters at most", name
        )
    if "" in found:
        raise Refusal(400, "stop: an empty string would end every text at once", name)
    return tuple(found)


def usage_wanted(name: str, value: Any, limits: Limits) -> bool:
    """Whether `stream_options` asks for the numbers of tokens."""
    if not isinstance(value, dict) or not set(value) <= {"include_usage"}:
        raise wrong(name, value, 'use {"include_usage": true}')
    return a_flag("stream_options.include_usage", value.get("include_usage", False), limits)


CHECKS: dict[str, Check] = {
    "model": a_name,
    "prompt": prompts,
    "max_tokens": tokens,
    "temperature": a_number(lambda x: x >= 0, "use 0 (greedy) or more"),
    "top_p": a_number(lambda x: 0 < x <= 1, "use more than 0, at most 1"),
    "top_k": an_integer(1, 1 << 62, "use 1 or more"),
    "seed": an_integer(0, SEED_END - 1, "use 0 to 2**62 - 1"),
    "n": an_integer(1, 1 << 62, "use 1 or more"),
    "stop": stops,
    "stream": a_flag,
    "stream_options": usage_wanted,
    "echo": a_flag,
    "experts": a_flag,
    "logprobs": an_integer(0, SCORED, f"use 0 to {SCORED}"),
    "user": a_name,
}
"""Every field that may have any valid value; `user` changes nothing."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "suffix": (None, ""),
}
"""Fields of the OpenAI API that are not supported, and the values that change nothing."""
