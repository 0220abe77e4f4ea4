"""samples.txt holds one text per step, whatever the texts hold."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from makemoe.tracking.samples import TextSample


class Said(TextSample):
    """Samples what the test says."""

    text = ""

    def sample(self, trainer: Any, module: Any) -> str:
        return self.text


def at(step: int) -> Any:
    state = SimpleNamespace(fn="fit")
    return SimpleNamespace(global_step=step, sanity_checking=False, state=state, loggers=[])


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setattr("makemoe.tracking.samples.LanguageModel", object)
    return Said(tmp_path, "\n", 5, 1)


def write(samples: Said, step: int, text: str) -> None:
    samples.text = text
    samples.on_validation_end(at(step), cast(Any, None))


def test_a_resumed_run_takes_out_what_it_samples_again(samples: Said) -> None:
    for step in (10, 20, 30, 40):
        write(samples, step, f"text of {step}")
    samples.on_train_start(at(25), cast(Any, None))
    whole = "==== step 10\ntext of 10\n\n==== step 20\ntext of 20\n\n"
    assert samples.path.read_text() == whole
    write(samples, 30, "another")
    write(samples, 30, "the last word")
    assert samples.path.read_text() == f"{whole}==== step 30\nthe last word\n\n"


@pytest.mark.parametrize(
    "text", ["==== step 99", "a\n==== step 5\nb", "\r==== step 5\r", "\n\n", "==== step 5\n" * 3]
)
def test_a_text_that_looks_like_a_head_is_none(samples: Said, text: str) -> None:
    write(samples, 10, text)
    write(samples, 20, text)
    kept = samples.path.read_bytes()
    assert kept.count(b"\n==== step") == 1
    write(samples, 30, text)
    samples.on_train_start(at(20), cast(Any, None))
    assert samples.path.read_bytes() == kept


def test_a_text_is_kept_as_it_is_where_nothing_looks_like_a_head(samples: Said) -> None:
    write(samples, 10, "ä ==== step 5\r\n  = ==== step\n====step 5")
    assert samples.path.read_bytes() == (
        "==== step 10\nä ==== step 5\r\n  = ==== step\n====step 5\n\n".encode()
    )


def test_a_new_run_has_no_file_before_its_first_sample(samples: Said) -> None:
    samples.on_train_start(at(0), cast(Any, None))
    assert not samples.path.exists()


def test_a_file_that_is_damaged_is_gone_on_with(samples: Said) -> None:
    samples.path.write_bytes(b"\xff\n==== step 10\n\xfe\n\n==== step " + b"9" * 5000 + b"\nx\n")
    write(samples, 20, "text")
    assert samples.path.read_bytes().startswith(b"==== step 10\n\xfe\n\n")
    assert samples.path.read_bytes().endswith(b"==== step 20\ntext\n\n")
