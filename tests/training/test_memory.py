"""What becomes of freed memory, seen from the system."""

import subprocess
import sys
from pathlib import Path

import pytest

from makemoe.training.memory import glibc

FREES = """
import sys
from pathlib import Path
from makemoe.training.memory import keep_freed_memory, return_freed_memory

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))

def left_of_64_mb():
    before = resident()
    blocks = [b"x" * (1 << 22) for _ in range(16)]
    assert resident() - before > 60
    del blocks
    return resident() - before

keep_freed_memory()
kept = left_of_64_mb()
before = resident()
return_freed_memory()
given_back = before - resident()
print(kept, given_back, left_of_64_mb())
"""


@pytest.mark.skipif(glibc() is None, reason="needs glibc")
def test_freed_memory_is_kept_or_returned_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREES],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    kept, given_back, left = map(int, done.stdout.split())
    assert kept > 60
    assert given_back > 55
    assert left < 5
