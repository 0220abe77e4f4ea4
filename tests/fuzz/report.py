"""What a run found: a log, counts, failures by cause, and the table in docs/reliability.md."""

import json
import shlex
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

OUTCOMES = ("succeeded", "one error line", "interrupted", "failed")
TITLES = {
    "commands": "command lines",
    "configs": "config files",
    "texts": "texts and prompts",
    "fields": "checkpoint fields",
    "bytes": "checkpoint bytes",
}
BEGIN, END = "<!-- make fuzz: begin -->\n", "<!-- make fuzz: end -->"

Record = dict[str, Any]


def records(log: Path) -> list[Record]:
    """What has been tried, in order."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]


def outcome(record: Record) -> str:
    """One of OUTCOMES."""
    if record["violations"]:
        return "failed"
    if record["interrupted"]:
        return "interrupted"
    return "one error line" if record["status"] in (1, 2) else "succeeded"


def summary(found: list[Record], workers: int, seed: int) -> Record:
    """The figures of a run, which may have been stopped and resumed."""
    seconds = sum(record["seconds"] for record in found) / workers
    counts = {kind: Counter[str]() for kind in TITLES}
    for record in found:
        counts[record["case"]["kind"]][outcome(record)] += 1
    return {
        "inputs": len(found),
        "seed": seed,
        "workers": workers,
        "seconds": round(seconds),
        "per_second": round(len(found) / max(seconds, 1e-9), 1),
        "slowest_s": max((r["seconds"] for r in found), default=0),
        "peak_mib": max((r["peak_mib"] for r in found), default=0),
        "kinds": {kind: {name: count[name] for name in OUTCOMES} for kind, count in counts.items()},
    }


def table(figures: Record) -> str:
    """The figures in Markdown."""
    rows = [
        [TITLES[kind], sum(counts.values()), *counts.values()]
        for kind, counts in figures["kinds"].items()
    ]
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    lines = [
        f"| inputs | tried | {' | '.join(OUTCOMES)} |",
        "|---|" + "---:|" * (1 + len(OUTCOMES)),
        *(f"| {' | '.join(f'{v:,}' if isinstance(v, int) else v for v in row)} |" for row in rows),
        "",
        f"Seed {figures['seed']}, {figures['workers']} worker(s); the commands took "
        f"{figures['seconds']:,} s per worker, {figures['per_second']} inputs per second. "
        f"The slowest took {figures['slowest_s']:.1f} s, "
        f"the largest {figures['peak_mib']:,} MiB beyond the loaded program.",
    ]
    return "\n".join(lines) + "\n"


def put_into(document: Path, figures: Record) -> None:
    """Replace the table in a document."""
    before, _, rest = document.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}{table(figures)}{END}{after}")


def causes(found: list[Record]) -> dict[str, list[Record]]:
    """Failures by their signature, the most frequent first; in each the shortest input first."""
    by_signature = defaultdict(list)
    for record in found:
        if record["violations"]:
            by_signature[record["signature"]].append(record)
    for failures in by_signature.values():
        failures.sort(key=lambda record: len(str(record["case"])))
    return dict(sorted(by_signature.items(), key=lambda item: -len(item[1])))


def told(found: list[Record]) -> str:
    """Each distinct failure in a few lines, with how to repeat it."""
    lines = []
    for signature, failures in causes(found).items():
        first = failures[0]
        lines += [f"{len(failures)} x {signature}", f"    make fuzz ONLY={first['id']}"]
        lines += [f"    {line}" for line in shown(first)]
        if "behind" in signature or "files" in signature:
            lines.append(f"    touched: {' '.join(first.get('touched', []))}")
    return "\n".join(lines)


def shown(record: Record, width: int = 300) -> list[str]:
    """A case as one would type it."""
    case = record["case"]
    command = shlex.join(["makemoe", *case["argv"]]).encode("utf-8", "backslashreplace").decode()
    lines = [command if len(command) < width else f"{command[:width]} ..."]
    if case.get("output", "file") != "file":
        lines.append(f"  standard output: {case['output']}")
    for name, spec in case["files"].items():
        spec = dict(spec)
        if "hex" in spec:
            spec = {"text": bytes.fromhex(spec["hex"]).decode("utf-8", "backslashreplace")}
        text = json.dumps(spec, ensure_ascii=True)
        lines.append(f"  {name}: {text if len(text) < width else text[:width] + ' ...'}")
    return lines
