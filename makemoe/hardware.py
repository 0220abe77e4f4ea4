"""Figures of GPUs and of what connects them, from data sheets. Does not import torch.

A data sheet gives a link's rate for both directions together; the rates here are for one.
"""

from typing import NamedTuple

GIGA, TERA = 10**9, 10**12
MICRO = 1e-6


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


class Link(NamedTuple):
    """What connects devices.

    Attributes:
        name: its name.
        rate: bytes per second in one direction, of one device or, if `shared`, of one machine.
        latency: seconds per hop, of NCCL's ring for large messages (`hwLat` in its tuning.cc).
        shared: whether the devices of a machine share it.
    """

    name: str
    rate: float
    latency: float
    shared: bool = False


NVLINK_US, PCI_US, NETWORK_US = 3.4, 5.7, 14.0

LINKS = {
    "nvlink4": Link("NVLink 4", 450 * GIGA, NVLINK_US * MICRO),
    "nvlink3": Link("NVLink 3", 300 * GIGA, NVLINK_US * MICRO),
    "pcie5": Link("PCIe 5.0 x16", 64 * GIGA, PCI_US * MICRO),
    "pcie4": Link("PCIe 4.0 x16", 32 * GIGA, PCI_US * MICRO),
}
"""Between the devices of a machine."""

NETWORKS = {
    "ndr": Link("InfiniBand NDR, an adapter per device", 50 * GIGA, NETWORK_US * MICRO),
    "hdr": Link("InfiniBand HDR, an adapter per device", 25 * GIGA, NETWORK_US * MICRO),
    "ethernet100": Link("100 Gb Ethernet per machine", 12.5 * GIGA, NETWORK_US * MICRO, True),
    "ethernet10": Link("10 Gb Ethernet per machine", 1.25 * GIGA, NETWORK_US * MICRO, True),
}
"""Between machines: 400, 200, 100 and 10 Gb/s."""


class Kind(NamedTuple):
    """A kind of device, with what usually connects it.

    Attributes:
        name: its whole name; a key of PEAKS.
        memory: bytes.
        memory_rate: bytes of its memory read or written per second.
        link: a key of LINKS.
        network: a key of NETWORKS.
    """

    name: str
    memory: float
    memory_rate: float
    link: str
    network: str


KINDS = {
    "h100": Kind("NVIDIA H100 80GB HBM3", 80 * GIGA, 3350 * GIGA, "nvlink4", "ndr"),
    "h200": Kind("NVIDIA H200", 141 * GIGA, 4800 * GIGA, "nvlink4", "ndr"),
    "a100": Kind("NVIDIA A100-SXM4-80GB", 80 * GIGA, 2039 * GIGA, "nvlink3", "hdr"),
    "l40s": Kind("NVIDIA L40S", 48 * GIGA, 864 * GIGA, "pcie4", "ethernet100"),
    "rtx4090": Kind("NVIDIA GeForce RTX 4090", 24 * GIGA, 1008 * GIGA, "pcie4", "ethernet10"),
}
"""From NVIDIA's data sheets; the networks of the first three are those of its DGX machines."""

CPU = "cpu"
"""The kind of device that is this machine's processor: its figures are measured, not looked up."""
