"""What differs between devices: float64, and where random numbers come from."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that have no float64."""


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
