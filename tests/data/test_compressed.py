import gzip
import os
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from makemoe.data.compressed import opened, suffixes
from makemoe.errors import DataError, MissingPackageError

TEXT = "Grüße, Bürger! 漢字 und \U0001f600.\r\n".encode() * 4000
PACK = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
each_kind = pytest.mark.parametrize("suffix", PACK)


def unpacked(path: Path, size: int = 1000) -> bytes:
    with opened(str(path)) as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


@pytest.mark.parametrize("suffix", ["", ".txt", *PACK, ".GZ", ".Zst"])
def test_a_file_is_read_as_its_suffix_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK.get(suffix.lower(), bytes)(TEXT))
    assert unpacked(path) == TEXT


@each_kind
def test_several_compressed_parts_are_one_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"".join(map(PACK[suffix], [b"one ", b"", b"two ", TEXT])))
    assert unpacked(path) == b"one two " + TEXT


def test_what_zstd_is_to_skip_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    skippable = bytes.fromhex("502a4d18") + (5).to_bytes(4, "little") + b"abcde"
    path.write_bytes(skippable + PACK[".zst"](TEXT) + skippable)
    assert unpacked(path) == TEXT


@each_kind
def test_no_bytes_are_no_text(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").touch()
    assert unpacked(tmp_path / f"a{suffix}") == b""


@given(
    st.sampled_from(["", *PACK]), st.lists(st.integers(0, 3000), max_size=6), st.integers(1, 5000)
)
def test_reading_and_skipping_in_any_order_is_slicing(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, steps: list[int], size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"sliced{suffix}"
    path.write_bytes(PACK.get(suffix, bytes)(TEXT))
    at = 0
    with opened(str(path)) as stream:
        assert stream.size == path.stat().st_size
        for step in steps:
            block = stream.read(size)
            assert block == TEXT[at : at + len(block)]
            assert 0 < len(block) <= size
            stream.skip(step)
            at += len(block) + step
        assert stream.read(size)[:1] == TEXT[at : at + 1]
        assert 0 < stream.consumed() <= stream.size


@each_kind
@pytest.mark.parametrize("kept", [5, 0.1, 0.5, 0.999])
def test_data_cut_short_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a{suffix}"
    whole = PACK[suffix](TEXT)
    path.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    with pytest.raises(DataError, match=r"^its \w+ data ends too early.*; copy the file again$"):
        unpacked(path)


@each_kind
@pytest.mark.parametrize("damage", ["no such data", "checksum", "rubbish behind"])
def test_damaged_data_is_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    path, whole = tmp_path / f"a{suffix}", PACK[suffix](TEXT)
    at = -5 if suffix == ".gz" else -1  # of the checksum
    changed = bytearray(whole)
    changed[at] ^= 1
    path.write_bytes(
        {"no such data": TEXT, "checksum": changed, "rubbish behind": whole + b"rubbish"}[damage]
    )
    with pytest.raises(
        DataError, match=r"^is not \w+ data, or is damaged \(.+\); try \w+ -t FILE$"
    ):
        unpacked(path)


def zeros(suffix: str, count: int) -> bytes:
    """That many MiB of zeros, compressed as well as they can be."""
    if suffix == ".gz":
        packer: Any = zlib.compressobj(9, wbits=31)
    else:
        packer = zstandard.ZstdCompressor(level=19).compressobj()
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(count)) + packer.flush()


@each_kind
def test_a_bomb_takes_little_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(zeros(suffix, 100))
    assert path.stat().st_size < 150_000
    tracemalloc.start()
    with opened(str(path)) as stream:
        size = sum(len(block) for block in iter(lambda: stream.read(1 << 16), b""))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == 100 << 20
    assert peak < 40 << 20


def test_a_window_that_needs_much_memory_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.zst").write_bytes(packer.compress(TEXT) + packer.flush())
    with pytest.raises(DataError, match="too much memory"):
        unpacked(tmp_path / "a.zst")


def test_without_zstandard_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.zst").write_bytes(PACK[".zst"](TEXT))
    with pytest.raises(
        MissingPackageError, match=r"^a .zst file needs .* pip install 'makemoe\[zstd\]'$"
    ):
        unpacked(tmp_path / "a.zst")


def test_zstandard_is_imported_for_such_files_only(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(PACK[".gz"](TEXT))
    code = (
        "import sys; from makemoe.data.compressed import opened\n"
        "with opened('a.gz') as stream: stream.read(10)\n"
        "assert 'zstandard' not in sys.modules"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        check=True,
    )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.txt", (".txt", "")),
        ("b/a.JSONL.GZ", (".jsonl", ".gz")),
        ("a.gz", ("", ".gz")),
        ("a.tar.zst", (".tar", ".zst")),
        (".gz", ("", "")),
        ("txt", ("", "")),
    ],
)
def test_suffixes(name: str, found: tuple[str, str]) -> None:
    assert suffixes(name) == found


def test_an_error_of_the_system_comes_through(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gz")
    with pytest.raises(OSError, match="Not a regular file"), opened(str(tmp_path / "pipe.gz")):
        raise AssertionError("opened a pipe")
