"""The judge sees what it should: commands that misbehave on purpose, in real forks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MISBEHAVE = Path(__file__).parent / "misbehave.py"
EXPECTED = {
    "does well": [],
    "says what is wrong": [],
    "goes on until interrupted": [],
    "a hang": ["did not end in time"],
    "a busy hang": ["did not end in time"],
    "a hang that ignores Ctrl-C": ["did not end at Ctrl-C"],
    "a memory error": ["printed a traceback"],
    "a reservation": ["printed a traceback"],
    "large tensors": ["printed a traceback"],
    "a crash": ["was killed by SIGSEGV"],
    "a kill": ["was killed by SIGKILL"],
    "many processes": ["printed a traceback", "left processes running"],
    "a process left": ["left processes running"],
    "a traceback": ["printed a traceback"],
    "a bug reported": ["reported a bug in makemoe"],
    "silence": ["failed without a word"],
    "an error without its prefix": ["failed without an error line"],
    "two errors": ["printed more than one error line"],
    "an error, then more": ["printed something after the error line"],
    "an error, then success": ["printed an error line and succeeded"],
    "a long error": ["printed a very long error line"],
    "an escape sequence": ["printed control characters in the error line"],
    "an unknown status": ["ended with status 7"],
    "unhealthy predict": ["ended with status 3"],
    "a marker": ["ran code"],
    "an import": ["imported a module that a checkpoint names"],
    "a leftover": ["failed and left something behind"],
    "a leftover folder": ["failed and left something behind"],
    "a partial file": ["left a partial file", "failed and left something behind"],
    "an unasked file": ["wrote files that nobody asked for"],
    "a changed file": ["changed files that were there"],
    "a lost file": ["changed files that were there"],
    "a fit's own folder": [],
    "a fit's torn checkpoint": ["left a checkpoint that cannot be read"],
    "another run's file": ["changed files that were there"],
    "a root that writes anywhere": [],
}


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """Violations by misbehaviour; one process forks for all of them."""
    done = subprocess.run(
        [sys.executable, MISBEHAVE], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    violations: dict[str, list[str]] = json.loads(done.stdout)
    return violations


def test_every_misbehaviour_is_tried(found: dict[str, list[str]]) -> None:
    assert found.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_judge_names(found: dict[str, list[str]], name: str) -> None:
    assert sorted(found[name]) == sorted(EXPECTED[name])
