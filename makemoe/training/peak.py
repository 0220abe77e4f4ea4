"""The most that a GPU can compute: the peak rate of its matrix products, by its name."""

import torch

from makemoe.hardware import PEAKS, TERA

FORMATS = {
    **dict.fromkeys(("bf16-mixed", "bf16-true"), "bf16"),
    **dict.fromkeys(("16-mixed", "16-true"), "fp16"),
    "32-true": "fp32",
}
"""In which format matrices are multiplied, by the Trainer's precision."""


def peak_flops(name: str, precision: str, tf32: bool) -> float | None:
    """FLOP/s that a GPU can reach, or None if it is not known.

    Args:
        name: the GPU's whole name.
        precision: the Trainer's precision.
        tf32: whether torch multiplies float32 matrices in TF32.
    """
    chosen = FORMATS.get(precision)
    if name not in PEAKS or chosen is None:
        return None
    peak = PEAKS[name]
    rate = peak.tf32 if chosen == "fp32" and tf32 and peak.tf32 else getattr(peak, chosen)
    return None if rate is None else rate * TERA


def peak_of(device: torch.device, precision: str) -> float | None:
    """The peak of this device in FLOP/s; None on a CPU and for a GPU that is not known."""
    if device.type != "cuda":
        return None
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return peak_flops(torch.cuda.get_device_name(device), precision, tf32)
