"""A failing case without what it does not need to fail."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

from fuzz.case import Case
from fuzz.trial import Laboratory, Verdict


def shrunk(laboratory: Laboratory, verdict: Verdict, trials: int = 40) -> Verdict:
    """Leave out arguments, files and edits as long as the failure stays the same."""
    best = verdict
    progress = True
    while progress and trials > 0:
        progress = False
        for smaller in _smaller(best.case):
            trials -= 1
            tried = laboratory.try_out(smaller)
            if tried.signature == verdict.signature:
                best, progress = tried, True
                break
            if trials <= 0:
                break
    return best


def _smaller(case: Case) -> Iterator[Case]:
    for size in (4, 2, 1):
        for at in range(1, len(case.argv) - size + 1):
            yield replace(case, argv=case.argv[:at] + case.argv[at + size :])
    for name, spec in case.files.items():
        yield replace(case, files={k: v for k, v in case.files.items() if k != name})
        for key in ("edits", "ops"):
            for at in range(len(spec.get(key, ())) if len(spec.get(key, ())) > 1 else 0):
                files = deepcopy(case.files)
                del files[name][key][at]
                yield replace(case, files=files)
        yield from _shorter_text(case, name)


def _shorter_text(case: Case, name: str) -> Iterator[Case]:
    """A config without one of its blocks or lines."""
    if not name.endswith(".yaml") or "hex" not in case.files[name]:
        return
    lines = bytes.fromhex(case.files[name]["hex"]).splitlines(keepends=True)
    for size in (16, 8, 4, 2, 1):
        for at in range(0, len(lines) - size + 1, size):
            content = b"".join(lines[:at] + lines[at + size :])
            yield replace(case, files={**case.files, name: {"hex": content.hex()}})
