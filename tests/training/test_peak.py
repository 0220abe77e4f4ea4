"""The share of a GPU's peak is shown for known GPUs only; here a GPU is a name."""

import math
from pathlib import Path

import pytest
import torch
from trainers import rows, run

from makemoe.callbacks import Throughput, progress
from makemoe.training.module import LanguageModel
from makemoe.training.peak import FORMATS, PEAKS, peak_flops, peak_of

SXM = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "tera"),
    [
        (SXM, "bf16-mixed", False, 989.4),
        (SXM, "16-true", True, 989.4),
        (SXM, "32-true", False, 66.9),
        (SXM, "32-true", True, 494.7),
        (SXM, "64-true", False, None),
        ("NVIDIA A100-SXM4-80GB", "bf16-true", False, 312),
        ("Tesla T4", "bf16-mixed", False, None),  # computed, but not by its matrix units
        ("Tesla T4", "16-mixed", False, 65),
        ("Tesla T4", "32-true", True, 8.1),  # it has no TF32
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16-mixed", False, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16-mixed", False, None),
        ("AMD Instinct MI300X", "bf16-mixed", False, None),
    ],
)
def test_a_peak_is_that_of_the_whole_name_and_the_format(
    name: str, precision: str, tf32: bool, tera: float | None
) -> None:
    peak = peak_flops(name, precision, tf32)
    assert peak == (None if tera is None else pytest.approx(tera * 1e12))


def test_narrower_formats_are_not_slower() -> None:
    for name, peak in PEAKS.items():
        assert peak.fp32 <= (peak.tf32 or math.inf) <= (peak.bf16 or math.inf), name
        assert peak.bf16 in (None, peak.fp16), name


def test_a_cpu_has_no_peak() -> None:
    assert all(peak_of(torch.device("cpu"), precision) is None for precision in FORMATS)


def test_tf32_counts_where_torch_multiplies_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: SXM)
    cuda = torch.device("cuda", 0)
    assert peak_of(cuda, "32-true") == pytest.approx(66.9e12)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert peak_of(cuda, "32-true") == pytest.approx(494.7e12)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.filterwarnings("ignore")
def test_the_share_of_the_peak_is_logged_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 4, "val_check_interval": 4}
    run(tmp_path / "cpu", Throughput(), **settings)
    assert all("mfu" not in row for row in rows(tmp_path / "cpu"))
    monkeypatch.setattr(progress, "peak_of", lambda device, precision: 5e9)
    model = run(tmp_path / "gpu", Throughput(), **settings).lightning_module
    assert isinstance(model, LanguageModel)
    logged = [row for row in rows(tmp_path / "gpu") if "tokens_per_second" in row]
    assert len(logged) == 2
    for row in logged:
        rate = float(row["tokens_per_second"]) * model.done.work.flops
        assert float(row["mfu"]) == pytest.approx(rate / 5e9, rel=1e-5)
