"""`make fuzz`: try many inputs, count how they end, fail if one ends badly."""

import argparse
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

from scripts import Options, positive

from fuzz import report
from fuzz.case import Case
from fuzz.draw import cases
from fuzz.shrink import shrunk
from fuzz.surface import survey
from fuzz.trial import Laboratory, Verdict

HERE = Path(__file__).resolve()
REPOSITORY = HERE.parents[2]
TRAINING = {"fit", "validate", "test"}
STEPS = ("checkpoint.test_hostile_fields", "interrupts", "pairs")
"""Modules that run after the inputs, each with a status of its own (`python -m MODULE`)."""


def main() -> int:
    """Run; 0 when every input ended as it should."""
    options = parse()
    if options.only:
        return repeat(options)
    if options.shard is not None:
        return work(options)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        options.log.unlink(missing_ok=True)
    workers = [
        subprocess.Popen([sys.executable, "-m", "fuzz", *sys.argv[1:], f"--shard={n}"])
        for n in range(options.workers)
    ]
    broken = sum(worker.wait() != 0 for worker in workers)
    found = report.records(options.log)
    figures = report.summary(found, options.workers, options.seed)
    print(report.table(figures))
    failed = [record for record in found if record["violations"]]
    if failed:
        print(report.told(found))
    if options.keep:
        beside = json.loads(options.keep.read_text()) if options.keep.exists() else {}
        options.keep.write_text(json.dumps(beside | figures, indent=2) + "\n")
        report.put_into(options.keep.with_suffix(".md"), figures)
    if failed or broken or len(found) < options.count:
        return 1
    return 0 if options.quick else steps()


def parse() -> argparse.Namespace:
    """The options."""
    parser = Options("python -m fuzz", __doc__)
    add = parser.add_argument
    add("--count", type=positive, default=10_000, help="inputs (%(default)s)")
    add("--seed", type=int, default=1, help="another seed tries other inputs (%(default)s)")
    add("--workers", type=positive, default=1, help="processes that share the inputs (%(default)s)")
    add("--log", type=Path, default=REPOSITORY / ".fuzz" / "log.jsonl", help="one input per line")
    add("--resume", action="store_true", help="leave out what is in the log")
    add("--keep", type=Path, help="write the figures there, and the table beside it")
    add("--only", help="repeat one input of the log, by the beginning of its id")
    add("--shrink", action="store_true", help="with --only: leave out what is not needed to fail")
    add("--kind", choices=report.TITLES, help="try inputs of one kind only")
    add("--quick", action="store_true", help="few inputs that build a Trainer; no further steps")
    add("--shard", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def work(options: argparse.Namespace) -> int:
    """One worker's share of the inputs."""
    done = {record["id"] for record in report.records(options.log)}
    laboratory = Laboratory()
    log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        every = cases(survey(laboratory.scratch), laboratory.prepared, options.seed)
        chosen = (case for case in every if is_wanted(case, options))
        mine = islice(chosen, options.shard, options.count, options.workers)
        for number, case in enumerate(mine):
            if case.id in done:
                continue
            verdict = laboratory.try_out(case)
            os.write(log, (json.dumps(verdict.as_record()) + "\n").encode())
            if number % 100 == 99 and options.shard == 0:
                print(f"{number + 1} inputs per worker", file=sys.stderr, flush=True)
    finally:
        laboratory.close()
    return 0


def is_wanted(case: Case, options: argparse.Namespace) -> bool:
    """Whether a case is of the kind asked for; of the slow ones a quick run takes a third."""
    is_quick = not TRAINING.intersection(case.argv[:1]) or int(case.id, 16) % 3 == 0
    return options.kind in (None, case.kind) and (is_quick or not options.quick)


def repeat(options: argparse.Namespace) -> int:
    """Try one input again and show all of it."""
    matching = [r for r in report.records(options.log) if r["id"].startswith(options.only)]
    if not matching:
        print(f"no input {options.only} in {options.log}", file=sys.stderr)
        return 2
    case = Case(**matching[-1]["case"])
    laboratory = Laboratory()
    verdict: Verdict = laboratory.try_out(case)
    if options.shrink and verdict.violations:
        verdict = shrunk(laboratory, verdict)
    record = verdict.as_record()
    print("\n".join(report.shown(record, 10_000)))
    print(
        f"status {verdict.ended.status}, {verdict.ended.seconds:.2f} s, "
        f"{verdict.ended.peak >> 20} MiB; the folder: {laboratory.work}"
    )
    print(f"-- standard output\n{verdict.ended.out.decode('utf-8', 'backslashreplace')[:5000]}")
    print(f"-- standard error\n{verdict.ended.err[:20_000]}")
    print("-- verdict\n" + ("\n".join(verdict.violations) or "as it should be"))
    return 1 if verdict.violations else 0


def steps() -> int:
    """What else `make fuzz` runs; the first status that is not 0."""
    for module in STEPS:
        status = subprocess.run([sys.executable, "-m", module], check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
