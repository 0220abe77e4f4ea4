"""One input: a command line and the files that lie in its folder, as plain data."""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from typing import Any

STEPS = (
    r"(max_steps|max_epochs|min_steps|min_epochs|max_time|min_time|max_new_tokens|num_samples"
    r"|sample_tokens|limit_\w+_batches|calibration_tokens|num_sanity_val_steps"
    r"|accumulate_grad_batches|overfit_batches|fast_dev_run)"
)
BETWEEN = r"""[\[\\"'\]\s=:,+]+"""
MANY = r"""(-\s*1\b|[+]?\d{3,}|\d*\.?\d+e\+?\d|[-+.]?inf|0x|\d+:|\d+\*\*)"""
PROCESSES = r"(devices|num_nodes|num_workers)"
ENDLESS = re.compile(f"{STEPS}{BETWEEN}{MANY}|{PROCESSES}{BETWEEN}[2-9]", re.IGNORECASE)
"""A setting that may make a valid command run for hours, or wait for other machines."""


@dataclass
class Case:
    """What is tried.

    Attributes:
        kind: which generator made it.
        argv: the command line, without the program.
        files: what lies in the folder besides the prepared files, by name; see `fuzz.files`.
        reference: a command line whose output this one must give, if it succeeds.
        output: of standard output: a "file", or "full", "closed" or "gone" (a pipe's reader).
        original: a file that pretends to be a prepared run's checkpoint, and that run.
    """

    kind: str
    argv: list[str]
    files: dict[str, Any] = field(default_factory=dict)
    reference: list[str] | None = None
    original: list[str] | None = None
    output: str = "file"

    def as_json(self) -> str:
        """One line of ASCII; lone surrogates survive it."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def id(self) -> str:
        """A name that follows from the content."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()[:10]

    @property
    def may_go_on(self) -> bool:
        """Whether it may be a valid command that takes hours; it is interrupted then."""
        said = "\n".join([" ".join(self.argv), *map(words, self.files.values())])
        # Of itself a fit takes 5,000 steps; a checkpoint of the prepared runs says 2.
        unsaid = self.argv[:1] == ["fit"] and "max_steps" not in said
        edited = [at for spec in self.files.values() for _, at, *_ in spec.get("edits", ())]
        by_default = "ckpt_path" not in said or any(at[0] == "makemoe" for at in edited)
        is_large = any(is_long(spec) for spec in self.files.values())
        return (unsaid and by_default) or is_large or bool(ENDLESS.search(said))

    @property
    def is_possible(self) -> bool:
        """Whether a shell could pass these arguments."""
        try:
            encoded = [os.fsencode(argument) for argument in self.argv]
        except UnicodeEncodeError:
            return False
        return all(b"\0" not in e and len(e) < 131_072 for e in encoded)


def is_long(spec: dict[str, Any]) -> bool:
    """Whether a file is a text of many megabytes."""
    return spec.get("times", 0) * len(spec.get("repeat", "")) > 1 << 22 or (
        spec.get("special") == "sparse"
    )


def words(spec: dict[str, Any]) -> str:
    """What a file says, as far as it may name a setting."""
    if "hex" in spec:
        return bytes.fromhex(spec["hex"]).decode("latin-1")
    edits = [edit for edit in spec.get("edits", ()) if edit[0] != "delete"]
    return "\n".join(f"{at[-1]}: {value}" for _, at, *value in edits)
