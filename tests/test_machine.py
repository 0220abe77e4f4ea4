import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from makemoe import machine
from makemoe.machine import UNKNOWN, cgroup_limits, memory


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def limits(folder: Path) -> list[int]:
    return sorted(cgroup_limits(folder / "proc", folder / "sys"))


def test_a_group_of_version_2_has_its_own_limit_and_those_above_it(tmp_path: Path) -> None:
    write(tmp_path / "proc", "0::/user.slice/run.scope\n")
    write(tmp_path / "sys/user.slice/run.scope/memory.max", "max\n")
    write(tmp_path / "sys/user.slice/memory.max", "3000\n")
    write(tmp_path / "sys/memory.max", "5000\n")
    write(tmp_path / "memory.max", "1\n")  # not of the hierarchy
    assert limits(tmp_path) == [3000, 5000]


def test_a_container_of_version_1_has_the_limit_of_its_root(tmp_path: Path) -> None:
    write(tmp_path / "proc", "5:devices:/\n4:memory,hugetlb:/docker/abc\n0::/\n")
    write(tmp_path / "sys/memory/memory.limit_in_bytes", "7000\n")
    assert limits(tmp_path) == [7000]


def test_no_groups_are_no_limits(tmp_path: Path) -> None:
    assert limits(tmp_path) == []
    write(tmp_path / "proc", "nonsense\n")
    assert limits(tmp_path) == []


def test_the_least_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory().machine <= physical
    monkeypatch.setattr(machine, "cgroup_limits", lambda *_: [9 << 60, 4096])
    assert memory().machine == 4096


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_what_ulimit_grants_is_a_limit_of_each_process(kind: str) -> None:
    def restrict() -> None:
        resource.setrlimit(getattr(resource, kind), (1 << 30, resource.RLIM_INFINITY))

    asks = "from makemoe.machine import memory; print(memory().process)"
    done = subprocess.run(
        [sys.executable, "-c", asks], preexec_fn=restrict, capture_output=True, check=True
    )
    assert int(done.stdout) == 1 << 30


def test_what_is_not_known_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(machine, "cgroup_limits", lambda *_: [])
    monkeypatch.setattr(machine, "resource", None)
    assert memory() == (UNKNOWN, UNKNOWN)
