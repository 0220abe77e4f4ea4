"""The most that a GPU can compute: the peak rate of its matrix products, by its name."""

from typing import NamedTuple

import torch

TERA = 10**12


class Peak(NamedTuple):
    """TFLOP/s of dense matrix products, added up in float32; None: not in hardware."""

    bf16: float | None
    fp16: float | None
    tf32: float | None
    fp32: float


AMPERE_A100 = Peak(312, 312, 156, 19.5)
HOPPER_SXM = Peak(989.4, 989.4, 494.7, 66.9)

PEAKS = {
    "Tesla T4": Peak(None, 65, None, 8.1),
    "NVIDIA A100-SXM4-40GB": AMPERE_A100,
    "NVIDIA A100-SXM4-80GB": AMPERE_A100,
    "NVIDIA A100-PCIE-40GB": AMPERE_A100,
    "NVIDIA A100 80GB PCIe": AMPERE_A100,
    "NVIDIA A10": Peak(125, 125, 62.5, 31.2),
    "NVIDIA GeForce RTX 3090": Peak(71.2, 71.2, 35.6, 35.6),
    "NVIDIA GeForce RTX 4090": Peak(165.2, 165.2, 82.6, 82.6),
    "NVIDIA L4": Peak(121, 121, 60.5, 30.3),
    "NVIDIA L40S": Peak(362, 362, 183, 91.6),
    "NVIDIA H100 80GB HBM3": HOPPER_SXM,
    "NVIDIA H100 PCIe": Peak(756, 756, 378, 51.2),
    "NVIDIA H200": HOPPER_SXM,
}
"""From NVIDIA's data sheets, without sparsity, by the whole name that torch reports: a laptop's
card, a slice of a card (MIG) or another version has a name, and a rate, of its own."""

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
