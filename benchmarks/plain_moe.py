"""The baseline: the same model, written plainly as in a tutorial.

A Python loop over attention heads, a Python loop over experts with boolean masks, float32, and
sampling that computes the whole context again for each token. `copy_of` copies the weights of the
package's model, so that a check can show that both compute the same before they are timed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemoe.model.transformer import MoETransformer


class Head(nn.Module):
    """One head of causal self-attention."""

    def __init__(self, n_embd: int, head_size: int, block_size: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("visible", torch.ones(block_size, block_size).tril().bool())
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        T = x_BTD.shape[1]
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        scores_BTT = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        scores_BTT = scores_BTT.masked_fill(~self.visible[:T, :T], float("-inf"))
        return self.dropout(scores_BTT.softmax(-1)) @ v


class Attention(nn.Module):
    """Attention heads computed one after another and concatenated."""

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            Head(n_embd, n_embd // n_head, block_size, dropout) for _ in range(n_head)
        )
        self.proj = nn.Linear(n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.dropout(self.proj(torch.cat([head(x_BTD) for head in self.heads], dim=-1)))


class SparseMoE(nn.Module):
    """Experts computed one after another, each on the tokens that chose it."""

    def __init__(self, n_embd: int, num_experts: int, top_k: int, dropout: float) -> None:
        super().__init__()
        self.top_k = top_k
        self.gate = nn.Linear(n_embd, num_experts)
        self.noise = nn.Linear(n_embd, num_experts)
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(n_embd, 4 * n_embd),
                nn.ReLU(),
                nn.Linear(4 * n_embd, n_embd),
                nn.Dropout(dropout),
            )
            for _ in range(num_experts)
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        scores_BTE = self.gate(x_BTD)
        if self.training:
            scale_BTE = F.softplus(self.noise(x_BTD))
            scores_BTE = scores_BTE + torch.randn_like(scores_BTE) * scale_BTE
        kept_BTK, chosen_BTK = scores_BTE.topk(self.top_k)
        only_kept_BTE = torch.full_like(scores_BTE, float("-inf"))
        weights_BTE = only_kept_BTE.scatter(-1, chosen_BTK, kept_BTK).softmax(-1)
        y_BTD = torch.zeros_like(x_BTD)
        for e, expert in enumerate(self.experts):
            chose_BT = (chosen_BTK == e).any(-1)
            if chose_BT.any():
                y_BTD[chose_BT] += expert(x_BTD[chose_BT]) * weights_BTE[chose_BT, e, None]
        return y_BTD


class Block(nn.Module):
    """Attention, then experts."""

    def __init__(self, attention: Attention, moe: SparseMoE, n_embd: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.attention, self.moe = attention, moe

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.norm_1(x_BTD))
        return x_BTD + self.moe(self.norm_2(x_BTD))


class PlainMoE(nn.Module):
    """The faithful recipe's model."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        num_experts: int,
        top_k: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.blocks = nn.ModuleList(
            Block(
                Attention(n_embd, n_head, block_size, dropout),
                SparseMoE(n_embd, num_experts, top_k, dropout),
                n_embd,
            )
            for _ in range(n_layer)
        )
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size)

    def forward(self, ids_BT: Tensor) -> Tensor:
        positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTD = self.token_embedding(ids_BT) + self.position_embedding(positions_T)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD))

    @torch.no_grad()
    def generate(self, ids_BT: Tensor, max_new_tokens: int) -> Tensor:
        for _ in range(max_new_tokens):
            logits_BV = self(ids_BT[:, -self.block_size :])[:, -1]
            next_B1 = torch.multinomial(logits_BV.softmax(-1), 1)
            ids_BT = torch.cat([ids_BT, next_B1], dim=1)
        return ids_BT


@torch.no_grad()
def copy_of(fast: MoETransformer, dropout: float) -> PlainMoE:
    """The plain model with the weights of a fast one (MLP experts, noisy top-k routers).

    Also of its dtype and on its device.
    """
    plain = PlainMoE(
        fast.vocab_size,
        fast.block_size,
        len(fast.blocks),
        fast.n_head,
        fast.n_embd,
        fast.num_experts,
        fast.top_k,
        dropout,
    ).to(fast.head.weight)
    for mine, theirs in zip(
        (plain.token_embedding, plain.position_embedding, plain.norm, plain.head),
        (fast.token_embedding, fast.position_embedding, fast.norm, fast.head),
        strict=True,
    ):
        mine.load_state_dict(theirs.state_dict())
    for mine, theirs in zip(plain.blocks, fast.blocks, strict=True):
        mine.norm_1.load_state_dict(theirs.norm_1.state_dict())
        mine.norm_2.load_state_dict(theirs.norm_2.state_dict())
        mine.attention.proj.load_state_dict(theirs.attention.proj.state_dict())
        q, k, v = theirs.attention.qkv.weight.chunk(3)
        size = fast.n_embd // fast.n_head
        for h, head in enumerate(mine.attention.heads):
            rows = slice(h * size, (h + 1) * size)
            head.query.weight.copy_(q[rows])
            head.key.weight.copy_(k[rows])
            head.value.weight.copy_(v[rows])
        mine.moe.gate.load_state_dict(theirs.moe.router.gate.state_dict())
        mine.moe.noise.load_state_dict(theirs.moe.router.noise.state_dict())
        stacked = theirs.moe.experts
        for e, expert in enumerate(mine.moe.experts):
            expert[0].weight.copy_(stacked.fc_in.weight[e].T)
            expert[0].bias.copy_(stacked.fc_in.bias[e])
            expert[2].weight.copy_(stacked.fc_out.weight[e].T)
            expert[2].bias.copy_(stacked.fc_out.bias[e])
    return plain
