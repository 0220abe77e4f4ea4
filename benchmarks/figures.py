"""Puts what was measured into pages of docs: `python -m benchmarks.figures`.

It comes from the files in benchmarks/results.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import three_digits, times
from benchmarks.scripts import Options, run

PROG = "python -m benchmarks.figures"
Line = dict[str, Any]

SHOWN = {
    "Intel Xeon": "intel-xeon-processor-2-cores-2026-11-22.json",
    "AMD EPYC": "amd-epyc-2-cores-2026-11-24.json",
}
RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
DOC, OPTIMIZERS = DOCS / "speed.md", DOCS / "optimizers.md"
PARALLEL, SCALING, SERVE = (DOCS / f"{name}.md" for name in ("parallel", "scaling", "serve"))
DATED = "-[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
LAYER = "MoE layer, "


def rows_of(path: Path) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def newest(folder: Path, name: str) -> dict[str, Line]:
    """The newest measurement of a row on each machine; rows without a value do not count."""
    found: dict[str, Line] = {}
    for path in sorted(folder.glob(f"*{DATED}.json")):
        row = rows_of(path).get(name)
        if row and all(line["ours"] is not None for line in row["results"]):
            found[path.stem[: -len("-2026-01-01")]] = row
    return found


def muon(folder: Path = RESULTS) -> str:
    """What a step of Muon costs, beside AdamW's and torch's Muon."""
    rows = []
    for machine, row in newest(folder, "optimizer").items():
        lines = row["results"]
        for adamw, singly, rounded in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
            rows.append(
                [
                    adamw["work"].removeprefix("Muon, "),
                    f"{three_digits(adamw['ours'])} ms",
                    f"{three_digits(rounded['ours'])} ms",
                    f"{three_digits(adamw['theirs'])} ms",
                    f"{three_digits(singly['theirs'])} ms",
                    adamw["note"],
                    f"{machine}, {counted(row['threads'])}, {row['measured'][:10]}",
                ]
            )
    head = ["model", "Muon", "in bfloat16", "AdamW, fused", "torch's Muon, one by one", "share"]
    return markdown([*head, "machine, date"], rows) if rows else ""


def single(names: Sequence[str], folder: Path = RESULTS) -> str:
    """Rows that are measured by themselves: the newest of each on each machine."""
    rows = [
        [
            line["work"],
            f"{three_digits(line['ours'])} {line['unit']}",
            f"{three_digits(line['theirs'])} {line['unit']}, {line['against']}"
            if line["theirs"]
            else "",
            "" if line["goal"] is None else f"{line['goal']}: {judged(line)}",
            f"{machine}, {row['measured'][:10]}",
        ]
        for name in names
        for machine, row in newest(folder, name).items()
        for line in row["results"]
    ]
    return markdown(["work", "measured", "against", "goal", "machine, date"], rows) if rows else ""


def predicted(folder: Path = RESULTS) -> str:
    """Steps of several processes, and what was predicted of them."""
    rows = [
        [
            line["work"].removeprefix("step of "),
            f"{three_digits(line['ours'])} ms",
            f"{three_digits(line['theirs'])} ms",
            f"{line['ratio']:.2f}",
            f"{machine}, {row['measured'][:10]}",
        ]
        for machine, row in newest(folder, "predicted_step").items()
        for line in row["results"]
    ]
    head = ["step of", "measured", "predicted", "measured / predicted", "machine, date"]
    return markdown(head, rows) if rows else ""


def counted(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def measured(rows: dict[str, Any]) -> list[Line]:
    """The results that have a value, in their order."""
    return [line for row in rows.values() for line in row["results"] if line["ours"] is not None]


def goals(machines: dict[str, list[Line]]) -> str:
    """Every row with a goal: one column per machine with the value that is judged."""
    merged: dict[tuple[str, ...], dict[str, Line]] = {}
    for machine, lines in machines.items():
        often = Counter(line["work"] for line in lines)
        for line in lines:
            if line["goal"] is not None:
                # Work that is measured once has the fastest dtype, which differs by machine.
                which = (line["dtype"], line["against"]) if often[line["work"]] > 1 else ()
                merged.setdefault((line["work"], *which), {})[machine] = line
    rows = []
    for (work, *_), found in merged.items():
        lines = list(found.values())
        dtypes = dict.fromkeys(line["dtype"] for line in lines)
        against = dict.fromkeys(line["against"].partition(" (")[0] for line in lines)
        verdicts = [judged(found[machine]) if machine in found else "" for machine in machines]
        rows.append([work, " / ".join(dtypes), " / ".join(against), lines[0]["goal"], *verdicts])
    return markdown(["work", "dtype", "against", "goal", *machines], rows)


def judged(line: Line) -> str:
    """The value that a goal applies to, and whether it is reached."""
    unit = line["goal"].split()[-1]
    if line["judged"] is None:
        value = ratio(line)
    elif unit == "%":
        value = f"{line['judged']:.2f} %"
    else:
        value = f"{three_digits(line['judged'])} {unit}"
    verdict = "reached" if line["reached"] else "not reached"
    return f"{value}, {verdict}"


def ratio(line: Line) -> str:
    """A ratio in words; nothing for what has no baseline or is a share."""
    if line["ratio"] is None or (line["goal"] or "").endswith("%"):
        return ""
    return times(line["ratio"], line["longer"], line["unit"])


def details(lines: list[Line]) -> str:
    """All rows but those of single layers: times or rates, ratio, and share of the limit."""
    rows = []
    for line in lines:
        if not line["work"].startswith(LAYER):
            name, share = next(iter(line["share"].items()), ("", None))
            name = {"own shapes": "products"}.get(name, name)
            rows.append(
                [
                    line["work"],
                    line["dtype"],
                    f"{three_digits(line['ours'])} {line['unit']}",
                    f"{three_digits(line['theirs'])} {line['unit']}" if line["theirs"] else "",
                    line["against"],
                    ratio(line),
                    f"{share:.0%} of {name}" if share is not None else "",
                ]
            )
    return markdown(["work", "dtype", "ours", "theirs", "against", "ratio", "of limit"], rows)


def layers(lines: list[Line]) -> str:
    """One MoE layer: a line per backend, a column per size and dtype, in ms."""
    times: dict[str, dict[str, str]] = {}
    for line in lines:
        if line["work"].startswith(LAYER):
            tokens, backend = line["work"].removeprefix(LAYER).split(", ")
            column = f"{tokens}, {line['dtype']}"
            of_backend = times.setdefault(f"`{backend}`", {})
            of_backend[column] = f"{three_digits(line['ours'])} ({ratio(line)})"
    columns = list(next(iter(times.values())))
    rows = [[backend, *(found[c] for c in columns)] for backend, found in times.items()]
    return markdown(["backend", *columns], rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, *rows]
    told = [f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|\n" for cells in lines]
    return "".join([told[0], f"{'|---' * len(head)}|\n", *told[1:]])


def machine_section(name: str, file: str, rows: dict[str, Any]) -> str:
    """All rows of one machine, and the limits measured in the same run."""
    lines = measured(rows)
    limits = rows["training_step"]["limits"]
    return "\n".join(
        [
            f"### {name}\n",
            f"[{file}](../benchmarks/results/{file}) has these figures with all their digits.\n",
            details(lines),
            "One MoE layer forward and backward, in ms (and against the plain layer in float32):\n",
            layers(lines),
            "The limits in the same run:\n",
            "".join(f"    {limit}: {rate:.3g}\n" for limit, rate in limits.items()),
        ]
    )


def blocks(folder: Path) -> dict[str, str]:
    """The parts of docs/speed.md that come from the results, by the name in their marks."""
    rows = {machine: rows_of(folder / file) for machine, file in SHOWN.items()}
    sections = [machine_section(name, file, rows[name]) for name, file in SHOWN.items()]
    return {
        "goals": goals({machine: measured(found) for machine, found in rows.items()}),
        "machines": "\n".join(sections),
    }


def replaced(text: str, blocks: dict[str, str], maker: str = "benchmarks.figures") -> str:
    """The page with new content between each pair of marks, which name the module that makes it."""
    for name, content in blocks.items():
        begin = f"<!-- {maker}: {name}, begin -->\n"
        end = f"<!-- {maker}: {name}, end -->\n"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        assert found, f"the page has no marks for {name}"
        text = before + begin + content + end + after
    return text


def pages(folder: Path = RESULTS) -> dict[Path, str]:
    """The pages as they are to be."""
    made = {
        DOC: blocks(folder) | {"alone": single(("tokenising",), folder)},
        OPTIMIZERS: {"muon": muon(folder)},
        PARALLEL: {
            "parallel": single(("saving_beside", "memory_per_rank", "router_metrics"), folder)
        },
        SCALING: {"predicted": predicted(folder)},
        SERVE: {"serving": single(("serving",), folder)},
    }
    return {path: replaced(path.read_text(encoding="utf-8"), parts) for path, parts in made.items()}


def main() -> None:
    """Write the pages."""
    Options(PROG, description="Put what was measured into the pages of docs.").parse_args()
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(PROG, main)
