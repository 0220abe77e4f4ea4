"""The router of the README is one file, and works as the README says."""

import re
from collections.abc import Callable
from pathlib import Path

from commandline import TINY, Ended, script

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readme_s_router_trains_and_samples_from_one_file(
    tmp_path: Path, makemoe: Callable[..., Ended]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (own,) = re.findall(r"--model\.router my_router\S+ --model\.router\.temperature \S+", README)
    (tmp_path / "my_router.py").write_text(code)
    ended = script("fit", *TINY, "--trainer.max_steps=10", *own.split(), cwd=tmp_path)
    assert ended.status == 0, ended.err

    sampling = ("predict", "--ckpt_path", "last", "--max_new_tokens", "20", "--temperature", "0")
    ended = makemoe(*sampling, "--trust", "my_router")
    assert ended.status == 0, ended.err
    assert len(ended.out) > 1

    for command in (sampling, ("validate", "--ckpt_path", "best"), ("fit", "--ckpt_path", "last")):
        ended = makemoe(*command)
        assert ended.status == 1
        assert "my_router.CosineRouter" in ended.error
        assert "--trust my_router" in ended.error
