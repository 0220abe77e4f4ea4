"""One worker: the prepared folder, and trying one case after another in it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuzz import child, damage, files, folder
from fuzz.case import Case
from fuzz.child import Ended
from fuzz.judge import FAULT, judge, signature


@dataclass
class Verdict:
    """What came of a case.

    Attributes:
        violations: the rules it broke.
        signature: what failures of one cause share.
        touched: paths that are new, changed or lost.
    """

    case: Case
    ended: Ended
    violations: list[str] = field(default_factory=list)
    signature: str = ""
    touched: list[str] = field(default_factory=list)

    def as_record(self) -> dict[str, Any]:
        """A line of the log."""
        err = self.ended.err
        return {
            "id": self.case.id,
            "case": asdict(self.case),
            "status": self.ended.status,
            "seconds": round(self.ended.seconds, 3),
            "cpu_s": round(self.ended.cpu_s, 3),
            "peak_mib": self.ended.peak >> 20,
            "timed_out": self.ended.timed_out,
            "interrupted": self.ended.interrupted,
            "violations": self.violations,
            "signature": self.signature,
            "touched": self.touched,
            "err": err if len(err) < 2500 else f"{err[:500]} ... {err[-1800:]}",
        }


class Laboratory:
    """A folder of one's own, with trained runs to copy for each case."""

    def __init__(self) -> None:
        os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="makemoe-fuzz-mpl-")
        child.load()
        self.scratch = Path(tempfile.mkdtemp(prefix="makemoe-fuzz-"))
        self.scratch.chmod(0o755)
        self.work, self.prepared = self.scratch / "work", self.scratch / "prepared"
        self.references: dict[str, bytes] = {}
        self.loaded = 0
        folder.plain_files(self.work)
        self._tidy()
        folder.hand_over(self.scratch)
        self.loaded = child.run(["--version"], self.scratch).peak
        for name, options in folder.RUNS.items():
            self._train(name, *options)
        folder.hand_over(self.scratch)
        ended = child.run(folder.EXPORT, self.scratch)
        assert ended.status == 0, ended.err + ended.stack
        shutil.copytree(self.work, self.prepared)

    def _train(self, name: str, *options: str) -> None:
        folder.hand_over(self.scratch)
        ended = child.run(["fit", *folder.TINY, *options, f"--run.name={name}"], self.scratch)
        assert ended.status == 0, ended.err + ended.stack

    def _tidy(self) -> None:
        """Empty everything that a case might have written to but its working folder."""
        for name in ("home", "cache", "tmp"):
            if not (self.scratch / name).exists() or any((self.scratch / name).iterdir()):
                folder.remove(self.scratch / name)
                (self.scratch / name).mkdir()

    def try_out(self, case: Case, seconds: float = child.SECONDS, debug: bool = False) -> Verdict:
        """Run a case in a fresh folder and judge it."""
        self._lay_out(case)
        before = folder.snapshot(self.work)
        ended = child.run(
            case.argv,
            self.scratch,
            may_go_on=case.may_go_on,
            seconds=seconds,
            debug=debug,
            output=case.output,
        )
        ended.peak = max(0, ended.peak - self.loaded)
        after = folder.snapshot(self.work)
        verdict = Verdict(case, ended, judge(case, ended, self.work, before, after))
        verdict.violations += self._accepted(case, ended)
        if verdict.violations:
            verdict.touched = sorted(path for path, _ in before.items() ^ after.items())[:20]
            verdict.signature = signature(ended, verdict.violations)
            if FAULT in ended.err and not debug:
                told = self.try_out(case, seconds, debug=True)
                verdict.signature = signature(told.ended, verdict.violations)
        return verdict

    def _lay_out(self, case: Case) -> None:
        folder.fresh(self.prepared, self.work)
        here = os.getcwd()
        os.chdir(self.work)  # a socket's path must be short
        try:
            files.build(self.work, case.files)
        finally:
            os.chdir(here)
        self._tidy()
        folder.hand_over(self.scratch)

    def _accepted(self, case: Case, ended: Ended) -> Iterator[str]:
        """What is wrong with having taken a file that pretends to be a prepared one."""
        if case.original is None or ended.status not in (0, 3):
            return
        name, run = case.original
        pair = self.prepared / "checkpoints" / run / "last.ckpt", self.work / name
        # In a fork: torch may crash on a damaged file.
        told = child.output_of(lambda: print(damage.is_other(*pair)), self.scratch / "told")
        if told != b"False\n":
            yield "took a damaged checkpoint"
        if case.reference and ended.out != self._output_of(case.reference):
            yield "gave another output than the undamaged file"

    def _output_of(self, argv: list[str]) -> bytes:
        """What a command prints in the folder as it was prepared."""
        key = repr(argv)
        if key not in self.references:
            ended = self.try_out(Case("reference", argv)).ended
            assert ended.status == 0, ended.err + ended.stack
            self.references[key] = ended.out
        return self.references[key]

    def close(self) -> None:
        """Remove everything."""
        folder.remove(self.scratch)
        shutil.rmtree(os.environ["MPLCONFIGDIR"], ignore_errors=True)
