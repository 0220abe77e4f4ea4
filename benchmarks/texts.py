"""Texts to tokenise, and the process that tokenises one."""

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.measure import resident_mb


def play() -> bytes:
    """The text of MAKEMOE_TINYSHAKESPEARE, or the bundled play."""
    named = os.environ.get("MAKEMOE_TINYSHAKESPEARE")
    sample = Path(named) if named else resources.files("makemoe.data") / "sample.txt"
    return sample.read_bytes()


def in_own_process(path: Path, cache: str, *options: str) -> tuple[dict[str, Any], float | None]:
    """What `benchmarks.tokenise` prints, and its peak MB, with its cache in a separate folder."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.tokenise", str(path), *options],
        env={**os.environ, "XDG_CACHE_HOME": cache},
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        peak_mb = resident_mb("VmHWM", process.pid)
        _, said = process.communicate()
    if not line:
        raise RuntimeError(said.strip().splitlines()[-1])
    return json.loads(line), peak_mb
