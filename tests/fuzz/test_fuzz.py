"""Inputs of all kinds end well: 300 here, always the same; `make fuzz` tries 10,000."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from fuzz import report

COUNT = 300
REPOSITORY = Path(__file__).parents[2]


def test_inputs_end_well(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    # In a process of its own: pytest has threads, which a fork would lose.
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", f"--count={COUNT}", f"--log={log}", "--quick"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'tests'}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    found = report.records(log)
    assert not report.causes(found), report.told(found)
    assert done.returncode == 0, done.stderr
    assert len(found) == COUNT
    kinds = Counter(record["case"]["kind"] for record in found)
    assert all(kinds[kind] > COUNT // 20 for kind in report.TITLES), kinds
    outcomes = Counter(map(report.outcome, found))
    # If all were refused at the first look, nothing behind it would be tried.
    assert outcomes["succeeded"] > COUNT // 10, outcomes


def test_the_table_in_the_docs_is_the_last_runs() -> None:
    document = (REPOSITORY / "docs" / "reliability.md").read_text()
    shown = re.search(f"{report.BEGIN}(.*){report.END}", document, re.DOTALL)
    assert shown is not None
    kept = REPOSITORY / "docs" / "reliability.json"
    assert shown.group(1) == (report.table(json.loads(kept.read_text())) if kept.exists() else "")
