import pytest

from makemoe.errors import UsageError
from makemoe.sizes import check_sizes, in_bytes, in_digits, with_prefix


@pytest.mark.parametrize("size", [True, 1.0, "1", None, [1]])
def test_what_is_not_an_integer_is_refused(size: object) -> None:
    with pytest.raises(UsageError, match=r"^n_layer .* is not an integer"):
        check_sizes({"n_embd": 3, "n_layer": size})


@pytest.mark.parametrize("size", [0, -1, -(10**4000)])
def test_what_is_not_positive_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=r"^n_layer .* use 1 or more$"):
        check_sizes({"n_layer": size})


@pytest.mark.parametrize("size", [1 << 63, 10**30, 10**4000])
def test_what_no_tensor_can_have_is_refused_in_a_short_line(size: int) -> None:
    with pytest.raises(UsageError, match=r"^n_layer .* use less than 2\*\*63$") as caught:
        check_sizes({"n_layer": size})
    assert len(str(caught.value)) < 80


def test_sizes_that_can_be_pass() -> None:
    check_sizes({"least": 1, "most": (1 << 63) - 1})


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (900, "900 bytes"),
        (1 << 20, "1 MiB"),
        (3 << 29, "1.5 GiB"),
        (24 << 30, "24 GiB"),
        (3000 << 40, "3000 TiB"),
        (10**30, "9.1e+17 TiB"),
    ],
)
def test_bytes_are_told_in_a_unit_that_suits_them(count: int, words: str) -> None:
    assert in_bytes(count) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0"), (10**10, "1" + 10 * "0"), (10**700, "1e+700")]
)
def test_long_numbers_are_told_by_their_order(number: int, words: str) -> None:
    assert in_digits(number) == words
    assert in_digits(-number) == (f"-{words}" if number else "0")


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 "),
        (999, "999 "),
        (999.6, "1 k"),
        (1000, "1 k"),
        (15_912_345, "15.9 M"),
        (999_960, "1 M"),
        (40.7e12, "40.7 T"),
        (989.4e12, "989 T"),
        (10**30, "1000000 Y"),
    ],
)
def test_numbers_are_told_in_three_digits_and_a_prefix(count: float, words: str) -> None:
    assert with_prefix(count) == words
