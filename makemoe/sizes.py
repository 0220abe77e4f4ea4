"""Sizes and seeds set by the user: which ones are valid, and how large numbers are printed."""

from collections.abc import Mapping
from typing import Any

from makemoe.errors import UsageError

END = 1 << 63
"""Sizes must be less than this: tensors count their elements in 64 bits."""

SEED_END = 1 << 62
"""Seeds are less than this, below torch's limit, so that a sample's number can be added."""

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
LONGEST = 20
"""Maximum number of digits that are printed in full."""


def check_sizes(sizes: Mapping[str, Any]) -> None:
    """Raise UsageError, with the name, for a size that is not a positive integer below END."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise UsageError(f"{name} {size!r} is not an integer: use 1 or more")
        if size < 1:
            raise UsageError(f"{name} {in_digits(size)} is too small: use 1 or more")
        if size >= END:
            raise UsageError(f"{name} {in_digits(size)} is too large: use less than 2**63")


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raise UsageError for a seed that is not an integer from 0 to SEED_END - 1."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEED_END:
        raise UsageError(f"{name} {seed}: invalid seed; use 0 to 2**62 - 1")


def head_size(n_embd: int, n_head: int) -> int:
    """The width of an attention head; UsageError if n_embd cannot be divided among the heads."""
    if n_embd % n_head:
        wider = -(-n_embd // n_head) * n_head
        mend = f"use n_embd {wider}, or another n_head" if n_head < n_embd else "lower n_head"
        raise UsageError(f"n_embd {n_embd} is not divisible by n_head {n_head}: {mend}")
    return n_embd // n_head


def in_digits(number: int) -> str:
    """A number in full, or its order of magnitude if it has many digits."""
    digits = abs(number).bit_length() * 0.30103
    if digits <= LONGEST:
        return str(number)
    return f"{'-' if number < 0 else ''}1e+{int(digits)}"


def in_bytes(count: int) -> str:
    """A number of bytes in a suitable unit."""
    power = min(max(count.bit_length() - 1, 0) // 10, len(UNITS) - 1)
    value = count / (1 << 10 * power)
    return f"{value:.0f} {UNITS[power]}" if 10 <= value < 10_000 else f"{value:.2g} {UNITS[power]}"


def with_prefix(count: float) -> str:
    """A number in three digits with the prefix of its unit, such as `15.9 M`."""
    power = 0
    while float(f"{count:.3g}") >= 1000 and power < len(PREFIXES) - 1:
        count, power = count / 1000, power + 1
    digits = f"{count:.0f}" if count >= 99.95 else f"{count:.3g}"
    return f"{digits} {PREFIXES[power]}"
