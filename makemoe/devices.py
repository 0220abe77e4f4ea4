"""Which device to use, and what differs between them: float64, and random numbers."""

import torch
from torch import Tensor

from makemoe.errors import UsageError, setting

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that have no float64."""


def find_device(name: str) -> str:
    """Return the device with this name, or the best one for `auto`.

    Raises:
        UsageError: if this machine does not have it.
    """
    if name == "auto":
        here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        return next((device for device, is_here in here.items() if is_here), "cpu")
    try:
        torch.zeros(1, device=name).item()  # fails on a device that exists in name only
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"{setting('device', name)} is not available on this machine: "
            f"try {setting('device', 'cpu')}"
        ) from error
    return name


def in_float64(x: Tensor) -> Tensor:
    """The tensor in float64, on its device, or on the CPU where the device has no float64."""
    return x.cpu().double() if x.device.type in WITHOUT_FLOAT64 else x.double()


def place_for(dtype: torch.dtype, device: torch.device) -> torch.device:
    """The device itself, or the CPU if the device does not have this dtype."""
    lacking = dtype == torch.float64 and device.type in WITHOUT_FLOAT64
    return torch.device("cpu") if lacking else device


def seed_generator(device: torch.device, seed: int) -> None:
    """Seed the default generator of a device, and no other.

    `torch.manual_seed`, which seeds those of all devices, takes half a millisecond.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.get_device_module(device).manual_seed(seed)


def seed_step(device: torch.device, seed: int, step: int, rank: int) -> None:
    """Seed dropout and router noise as a function of seed, step and rank."""
    mixed = mixing_all_bits(seed) * 0x9E3779B97F4A7C15
    mixed += step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB
    seed_generator(device, mixed % (1 << 63))


def mixing_all_bits(seed: int) -> int:
    """A seed whose lower 32 bits depend on all bits; a seed below 2**32 stays as it is.

    The CPU's generator uses the lower 32 bits only.
    """
    return (seed + (seed >> 32) * 0xD6E8FEB86659FD93) % (1 << 63)
