"""Ordinary tensors are whole in every process. Tensors in parts: see tests/parallel."""

import torch

from makemoe.shards import copies, cut, gathered, has_shards, here, total_norm, whole


def test_an_ordinary_tensor_is_its_own_part() -> None:
    x, other = torch.randn(3, 2), torch.randn(3, 2)
    assert here(x) is x
    assert cut(x, other) is x
    assert torch.equal(whole(x), x)
    assert copies(x, 4) == 4
    assert not has_shards(torch.nn.Linear(2, 2))


def test_gathered_keeps_what_is_there_and_detaches_weights() -> None:
    weight = torch.nn.Parameter(torch.randn(2))
    kept = gathered({"a": [weight, 3, "b"], "t": (weight,)}, keeps=True)
    assert (kept["a"][1:], type(kept["t"])) == ([3, "b"], tuple)
    assert torch.equal(kept["a"][0], weight)
    assert not kept["a"][0].requires_grad
    assert kept["a"][0].data_ptr() == kept["t"][0].data_ptr()


def test_the_norm_counts_copies_in_several_processes_once() -> None:
    tensors = [torch.randn(3, 2), torch.randn(4)]
    norm = total_norm(tensors, lambda square: square.mul_(3), processes=3)
    torch.testing.assert_close(norm, torch.cat([t.flatten() for t in tensors]).norm())
