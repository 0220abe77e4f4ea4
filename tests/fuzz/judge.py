"""What a command may and may not do, whatever its input."""

import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

from fuzz.case import Case
from fuzz.child import FAULT_OF_THE_HARNESS, MEMORY, PROCESSES, Ended
from fuzz.folder import Entry
from fuzz.hostile import MARKER
from makemoe.checkpoint.format import read
from makemoe.errors import MakeMoEError
from makemoe.files import PARTIAL

ERROR = "makemoe: error: "
FAULT = "bug in makemoe"
LONGEST_ERROR = 400
EVALUATIONS = ("predict", "inspect", "validate", "test", "runs")
WRITERS = ["fit"], ["export"], ["import"], ["consolidate"]
"""Commands that write files; none changes those that were there, but for a run's own."""

ASKED_FOR = re.compile("trace|profiler|callbacks|logger|plugins|default_root_dir|barebones|detect")
"""Options with which a command that trains nothing may write files."""

FROM_CHECKPOINTS = ("fields", "bytes")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")

Folder = dict[str, Entry]


def judge(case: Case, ended: Ended, work: Path, before: Folder, after: Folder) -> list[str]:
    """The rules that were broken; empty for success or one clear line."""
    return [
        *_ending(case, ended),
        *_words(case, ended),
        *_folder(case, ended, work, before, after),
    ]


def _ending(case: Case, ended: Ended) -> Iterator[str]:
    status = ended.status
    if ended.timed_out:
        yield "did not end in time" if not ended.interrupted else "did not end at Ctrl-C"
        return
    if ended.most > PROCESSES:
        yield f"started more than {PROCESSES} processes"
        return
    if ended.left_running:
        yield "left processes running"
    if ended.peak > MEMORY:
        yield "took more memory than it may"
    if status == FAULT_OF_THE_HARNESS:
        yield "the harness failed"
    elif status == -signal.SIGINT and ended.interrupted:
        return  # in Python's shutdown the system handles Ctrl-C, and a shell says 130
    elif status < 0:
        yield f"was killed by {signal.Signals(-status).name}"
    elif status == 3 and case.argv[:1] != ["inspect"]:
        yield "ended with status 3"
    elif status == 128 + signal.SIGINT and not ended.interrupted:
        yield "ended as if interrupted"
    elif status not in (0, 1, 2, 3, 128 + signal.SIGINT) and FAULT not in ended.err:
        yield f"ended with status {status}"


def _words(case: Case, ended: Ended) -> Iterator[str]:
    if ended.timed_out or ended.status < 0:
        return
    lines = re.split("[\r\n]", ended.err)  # a progress bar goes back to the line's beginning
    if lines[-1] == "":
        lines.pop()
    told = [line for line in lines if line.startswith(ERROR)]
    if FAULT in ended.err:
        yield "reported a bug in makemoe"
    if "Traceback (most recent call last)" in ended.err:
        yield "printed a traceback"
    elif ended.status in (1, 2):
        if case.output == "gone" and not told:
            pass  # whoever read the output has had enough
        elif not told and not ended.out and not lines:
            yield "failed without a word"
        elif not told and "usage: makemoe" not in ended.out.decode("utf-8", "replace"):
            yield "failed without an error line"
        elif len(told) > 1:
            yield "printed more than one error line"
        elif told and lines[-1] != told[0]:
            yield "printed something after the error line"
    elif told and ended.status in (0, 3):
        yield "printed an error line and succeeded"
    for line in told:
        if len(line) > LONGEST_ERROR:
            yield "printed a very long error line"
        if CONTROL.search(line):
            yield "printed control characters in the error line"


def _folder(case: Case, ended: Ended, work: Path, before: Folder, after: Folder) -> Iterator[str]:
    if any(path.startswith(MARKER) and "IMPORT" not in path for path in after):
        yield "ran code"
    if case.kind in FROM_CHECKPOINTS and f"{MARKER}_BY_IMPORT" in after:
        yield "imported a module that a checkpoint names"
    new = {path for path in after.keys() - before.keys() if not path.startswith(MARKER)}
    changed = {
        path
        for path in after.keys() & before.keys()
        if (after[path].kind, after[path].digest) != (before[path].kind, before[path].digest)
    }
    lost = before.keys() - after.keys()
    if any(PARTIAL in path for path in new) and not ended.timed_out and ended.status >= 0:
        yield "left a partial file"
    runs = _begun(before, after) if case.argv[:1] == ["fit"] else set()
    yield from _unreadable(work, after, new | changed)
    foreign = {path for path in new if not _is_of(path, runs)}
    if ended.status in (1, 2) and foreign:
        yield "failed and left something behind"
    elif case.argv[:1] not in WRITERS and foreign and not _was_asked_for(case):
        yield "wrote files that nobody asked for"
    if any(not _is_of(path, runs) for path in changed | lost) and not _was_asked_for(case):
        yield "changed files that were there"


def _begun(before: Folder, after: Folder) -> set[str]:
    """Folders of runs that began, or went on: each writes its config.yaml at its start."""
    return {
        str(Path(path).parent)
        for path, entry in after.items()
        if Path(path).name == "config.yaml" and entry != before.get(path)
    }


def _is_of(path: str, runs: set[str]) -> bool:
    """Whether a path is a run's folder, in it, or above it."""
    return any(
        path == run or path.startswith(run + "/") or run.startswith(path + "/") for run in runs
    )


def _was_asked_for(case: Case) -> bool:
    return bool(ASKED_FOR.search(" ".join(case.argv) + str(case.files)))


def _unreadable(work: Path, after: Folder, written: set[str]) -> Iterator[str]:
    for path in sorted(written):
        if path.endswith(("last.ckpt", "best.ckpt")) and stat.S_ISREG(after[path].kind):
            try:
                read(work / path)
            except MakeMoEError:
                yield "left a checkpoint that cannot be read"
                return


def signature(ended: Ended, violations: list[str]) -> str:
    """What two failures with the same cause have in common, as far as can be told."""
    where = ""
    if "Traceback (most recent call last)" in ended.err:
        frames = re.findall(r'File "([^"]+)", line \d+, in (\S+)', ended.err)
        own = [f"{Path(f).name}:{name}" for f, name in frames if "/makemoe/" in f]
        last = [f"{Path(f).name}:{name}" for f, name in frames][-1:]
        raised = [
            line
            for line in ended.err.splitlines()
            if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit|Warning|Empty)\b", line)
        ]
        kind = raised[-1].split(":")[0] if raised else "?"
        where = f"{kind} in {' '.join(own[-1:])} {' '.join(last)}"
    elif ended.timed_out:
        main_thread = ended.stack.rpartition("hread 0x")[2]  # it is the last that is shown
        frames = re.findall(r'File "([^"]+)", line \d+ in (\S+)', main_thread)
        own = [f"{Path(f).name}:{name}" for f, name in frames if "/makemoe/" in f]
        where = " ".join([*own[:1], *(f"{Path(f).name}:{name}" for f, name in frames[:1])])
    elif "killed by" in violations[0]:
        where = ""
    elif ended.err:
        where = re.split("[\r\n]", ended.err.rstrip("\n"))[-1]
        where = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", where)
        where = re.sub(r"[-+]?[\d.]+(e[-+]?\d+)?", "N", where)[:120]
    return f"{'; '.join(violations)} | {where}"
