"""What docs/serve.md says is so."""

import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from serving import alone, live, small

from makemoe.cli.options import serve_parser
from makemoe.data.tokenizer import CharTokenizer
from makemoe.serve import server
from makemoe.serve.batch import LIKELIEST, PROMPT_TOKENS
from makemoe.serve.fields import CHECKS, NEUTRAL
from makemoe.serve.limits import Limits
from makemoe.serve.text import FLUSH_S, Wish

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
LIMITS = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", PAGE, re.MULTILINE))


def test_the_client_of_the_page_works() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    model = small(CharTokenizer("abcdROME:\n"))
    with live(model) as server:
        here = code.replace("http://127.0.0.1:8000", server.url).replace('"laptop"', '"tiny"')
        here = here.replace("temperature=0.8", "temperature=0.8, seed=3")
        with redirect_stdout(StringIO()) as out:
            exec(here, {})
    assert out.getvalue() == alone(model, Wish("ROMEO:", 200, 0.8, seed=3))


def test_every_field_is_listed_and_no_other() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert listed == sorted(listed, key=listed.index)
    assert set(listed) == set(CHECKS)
    for name in NEUTRAL:
        told = "penalties" if name.endswith("_penalty") else f"`{name}`"
        assert told in PAGE


def test_the_defaults_of_fields_are_those_of_a_wish() -> None:
    defaults = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", PAGE, re.MULTILINE))
    for name in ("max_tokens", "temperature"):
        assert float(defaults[name]) == Wish._field_defaults[name]
    assert not Wish._field_defaults["echo"]
    assert defaults["echo"] == defaults["experts"] == "false"


@pytest.mark.parametrize(
    ("what", "option", "field"),
    [
        ("characters of a prompt", "max_prompt", "prompt"),
        ("tokens added to a text", "max_new_tokens", "max_tokens"),
        ("texts sampled together", "max_streams", "rows"),
        ("texts that wait", "max_waiting", "waiting"),
        ("seconds from the request to the last byte", "timeout", "seconds"),
    ],
)
def test_limits_are_those_of_the_options(what: str, option: str, field: str) -> None:
    default = serve_parser().get_default(option)
    assert f"`--{option}` {default}" in LIMITS[what]
    assert getattr(Limits(), field) == default


def test_other_limits_are_those_of_the_code() -> None:
    limits = Limits()
    assert LIMITS["texts of a request"] == str(limits.texts)
    told = "tokens of a request with `experts` or `logprobs`, without `stream`"
    assert LIMITS[told] == f"{limits.told:,} in all texts"
    assert LIMITS["stop texts"] == f"{limits.stops} of {limits.stop} characters"
    assert limits.body == pytest.approx(0.5e6, rel=0.1)
    assert LIMITS["seconds to send a whole request"] == f"{server.REQUEST_S:g}"
    assert LIMITS["seconds without reading, with 64 KB unread"] == f"{server.READ_S:g}"
    assert LIMITS["connections"].startswith(f"{server.SPARE} more than")
    assert f"Up to {PROMPT_TOKENS:,} tokens of prompts are read" in " ".join(PAGE.split())
    assert f"every {1000 * FLUSH_S:g} ms" in PAGE
    assert LIKELIEST == 8


def test_the_example_of_experts_has_the_shape_of_an_answer() -> None:
    (code,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    told = json.loads(code)
    with live(small()) as server:
        choice = server.post(prompt="a", max_tokens=1, experts=True).json["choices"][0]
    (one,) = choice["experts"]
    assert one.keys() == told.keys()
    assert one["layers"][0].keys() == told["layers"][0].keys()
    assert one["following"][0].keys() == told["following"][0].keys()
