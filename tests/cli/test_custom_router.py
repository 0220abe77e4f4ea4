from collections.abc import Callable
from pathlib import Path

from commandline import TINY, Ended, script

ROUTER = """\
import torch

from makemoe.model.router import Router, Routing


class MyRouter(Router):
    \"\"\"Experts in turn, by what the first number of a token's vector is above.\"\"\"

    def __init__(self, n_embd: int, num_experts: int, top_k: int, shift: int = 0) -> None:
        super().__init__(n_embd, num_experts, top_k)
        self.gate = torch.nn.Linear(n_embd, num_experts)
        self.shift = shift

    def forward(self, x_ND):
        logits_NE = self.linear32(self.gate, x_ND)
        probs_NE = logits_NE.softmax(-1)
        first_N = (x_ND[:, 0] > 0).long() + self.shift
        experts_NK = (first_N[:, None] + torch.arange(self.top_k)) % self.num_experts
        return Routing(probs_NE.gather(-1, experts_NK), experts_NK, logits_NE, probs_NE)
"""


def test_a_router_of_ones_own_in_one_file(tmp_path: Path, makemoe: Callable[..., Ended]) -> None:
    (tmp_path / "my_router.py").write_text(ROUTER)
    own = ("--model.router", "my_router.MyRouter", "--model.router.shift", "1")
    ended = script("fit", *TINY, "--trainer.max_steps=10", *own, cwd=tmp_path)
    assert ended.status == 0, ended.err

    sampling = ("predict", "--ckpt_path", "last", "--max_new_tokens", "20", "--temperature", "0")
    ended = makemoe(*sampling, "--trust", "my_router")
    assert ended.status == 0, ended.err
    assert len(ended.out) > 1

    for command in (sampling, ("validate", "--ckpt_path", "best"), ("fit", "--ckpt_path", "last")):
        ended = makemoe(*command)
        assert ended.status == 1
        assert "my_router.MyRouter" in ended.error
        assert "--trust my_router" in ended.error
