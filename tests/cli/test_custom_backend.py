"""A dispatch backend of the user's is a class in one file, named like any other part."""

from collections.abc import Callable
from pathlib import Path

from commandline import TINY, Ended, script

CODE = """
from makemoe.model.backends import Loop


class Own(Loop):
    name = "own loop"
"""


def test_a_backend_of_the_user_s_trains_and_samples(
    tmp_path: Path, makemoe: Callable[..., Ended]
) -> None:
    (tmp_path / "my_backend.py").write_text(CODE)
    ended = script("fit", *TINY, "--model.dispatch", "my_backend.Own", cwd=tmp_path)
    assert ended.status == 0, ended.err
    assert "dispatch own loop" in ended.err

    sampling = ("predict", "--ckpt_path", "last", "--max_new_tokens", "20")
    ended = makemoe(*sampling, "--trust", "my_backend")
    assert ended.status == 0, ended.err
    ended = makemoe(*sampling)
    assert ended.status == 1
    assert "--trust my_backend" in ended.error
