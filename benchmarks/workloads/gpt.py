"""The language model that every engine trains, and its data: the same weights, tokens and steps for all."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before it and added to its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = dim // 64
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        batch, tokens, dim = x_BTD.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, 64).transpose(1, 2)
            for part in self.qkv(self.norm_1(x_BTD)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, tokens, dim)
        x_BTD = x_BTD + self.out(attended)
        return x_BTD + self.down(F.gelu(self.up(self.norm_2(x_BTD))))


class Gpt(nn.Module):
    """Token and position embeddings, blocks, and a loss over the next token."""

    def __init__(self, layers: int, dim: int, seq: int, vocab: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(seq, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, x_BT: torch.Tensor, y_BT: torch.Tensor) -> torch.Tensor:
        h_BTD = self.tokens(x_BT) + self.positions(torch.arange(x_BT.shape[1]))
        for block in self.blocks:
            h_BTD = block(h_BTD)
        return F.cross_entropy(self.head(self.norm(h_BTD)).float().flatten(0, 1), y_BT.flatten())


def add_size(parser: argparse.ArgumentParser) -> None:
    """Arguments for the size of model and batch; the defaults are the reference workload, 34 M parameters."""
    for name, value in {"layers": 8, "dim": 512, "seq": 128, "vocab": 8192, "micro": 4, "accum": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)


def make_model(asked: argparse.Namespace) -> Gpt:
    """The model with the weights every engine starts from."""
    torch.manual_seed(0)
    return Gpt(asked.layers, asked.dim, asked.seq, asked.vocab)


def make_batches(asked: argparse.Namespace, steps: int, rank: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Micro-batches of each step of a rank. Few distinct tokens, so that a few steps lower the loss."""
    generator = torch.Generator().manual_seed(100 + rank)
    shape = (steps, asked.accum, asked.micro, asked.seq + 1)
    tokens = torch.randint(0, min(64, asked.vocab), shape, generator=generator)
    return [[(micro[:, :-1], micro[:, 1:]) for micro in step] for step in tokens]
