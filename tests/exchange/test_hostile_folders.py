"""Whatever a folder holds, it is read, or refused in one line; nothing in it is run."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from counterparts import GLM4, MIXTRAL, QWEN3, checkpoint_of, model_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from makemoe.checkpoint.inference import rebuilt
from makemoe.errors import MakeMoEError
from makemoe.exchange.export import export
from makemoe.exchange.take import take

pytest.importorskip("safetensors", reason="the extra `hf` is not installed")

PARTS = {"mixtral": MIXTRAL, "qwen3": QWEN3, "glm4": GLM4, "plain": GLM4}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, -1, 7, 2**31, 2**63, 10**20, -(10**20), 10**400),
    *(0.5, -0.5, 1e-30, 1e308, math.nan, math.inf, -math.inf, 2.0),
    *("", "wide", "silu", "../x", "a\0b", "\ud800", "\x1b[31m\nmakemoe: error: x", "x" * 10**5),
    *([], {}, [1], [0, 1, 2], [-1], ["a"], [[1]] * 50, {"a": 1}, {"rope_type": None}),
    *({"class_path": "os.system", "init_args": {"x": 1}}, {"class_path": 3}),
)
FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind, and room for a changed one."""
    root = tmp_path_factory.mktemp("written")
    for name, parts in PARTS.items():
        form = "safetensors" if name == "plain" else "transformers"
        export(checkpoint_of(model_of(parts), parts), "x.ckpt", root / name, form)
    return root


def check(folder: Path) -> None:
    """Read a folder; its model can then be built, or an error that is told in one line says why."""
    with suppress(MakeMoEError):
        rebuilt(take(folder).checkpoint, folder)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all settings, those within others too."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))


@pytest.mark.parametrize("name", PARTS)
@FEW
@given(data=st.data())
def test_hostile_settings(written: Path, name: str, data: st.DataObject) -> None:
    files = {"makemoe.json"} if name == "plain" else {"config.json", "tokenizer.json"}
    file = data.draw(st.sampled_from(sorted(files)))
    folder = written / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(written / name, folder)
    held = json.loads((folder / file).read_text(encoding="utf-8"))
    for _ in range(data.draw(st.integers(1, 2))):
        *above, last = data.draw(st.sampled_from(list(places(held))))
        inner = held
        for key in above:
            inner = inner[key] if isinstance(inner.get(key), dict) else {}
        inner[last] = deepcopy(data.draw(st.sampled_from(VALUES)))
    (folder / file).write_text(json.dumps(held), encoding="utf-8")
    check(folder)


@pytest.mark.parametrize("name", ["mixtral", "plain"])
@FEW
@given(data=st.data())
def test_damaged_bytes(written: Path, name: str, data: st.DataObject) -> None:
    folder = written / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(written / name, folder)
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    whole = bytearray(file.read_bytes())
    # The header of weights is at the beginning, where most can be wrong.
    near = st.integers(0, 200) | st.integers(0, len(whole) - 1)
    at = data.draw(near)
    if data.draw(st.booleans()):
        whole[at : at + 1] = data.draw(st.binary(max_size=9))
    else:
        del whole[at:]
    file.write_bytes(whole)
    check(folder)
