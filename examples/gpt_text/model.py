"""A small decoder-only transformer: rotary positions, RMSNorm before each layer, tied embeddings.

Letters in the names of tensors: B batch, T time (tokens), D model width, H heads, K width of a head, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    """The sizes that make a model. The defaults, with 2048 tokens, have 9.6 million parameters."""

    vocabulary: int
    context: int = 128
    layers: int = 5
    heads: int = 6
    width: int = 384

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads, got {self.heads} heads")


class Attention(nn.Module):
    """Causal self-attention of several heads, with rotary positions on queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x_BTD: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """Each position mixes the values of itself and of those before it."""
        batch, time, width = x_BTD.shape
        qkv = self.qkv(x_BTD).view(batch, time, 3, self.heads, width // self.heads)
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        mixed_BHTK = F.scaled_dot_product_attention(rotation(q_BHTK), rotation(k_BHTK), v_BHTK, is_causal=True)
        return self.out(mixed_BHTK.transpose(1, 2).reshape(batch, time, width))


class FeedForward(nn.Module):
    """Two linear maps around a gate: ``down(silu(gate(x)) * up(x))``.

    Source: N. Shazeer, GLU variants improve transformer (arXiv:2002.05202).
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.hidden = (shape.width * 8 // 3 + 63) // 64 * 64  # two thirds of the usual four widths, rounded up
        self.gate_up = nn.Linear(shape.width, 2 * self.hidden, bias=False)
        self.down = nn.Linear(self.hidden, shape.width, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Works on each position by itself."""
        gate, up = self.gate_up(x_BTD).split(self.hidden, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Attention, then feed-forward, each added to the stream it reads through a norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width)
        self.attention = Attention(shape)
        self.feed_forward_norm = nn.RMSNorm(shape.width)
        self.feed_forward = FeedForward(shape)

    def forward(self, x_BTD: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """The stream after this block."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class Rotation(nn.Module):
    """Turns pairs of numbers by angles that grow with the position, so that attention sees distances.

    Source: J. Su et al., RoFormer (arXiv:2104.09864), section 3.4.2.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, context: int, head_width: int) -> None:
        super().__init__()
        speed = 10_000.0 ** (-torch.arange(0, head_width, 2) / head_width)
        angle_TK = torch.outer(torch.arange(context), speed)
        self.register_buffer("cos", angle_TK.cos(), persistent=False)
        self.register_buffer("sin", angle_TK.sin(), persistent=False)

    def forward(self, x_BHTK: torch.Tensor) -> torch.Tensor:
        """`x` with each pair (first half, second half) turned."""
        cos, sin = self.cos[: x_BHTK.shape[-2]], self.sin[: x_BHTK.shape[-2]]
        first, second = x_BHTK.chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return turned.to(x_BHTK.dtype)  # the tables stay in float32 whatever the weights are


class Gpt(nn.Module):
    """Predicts the next token at every position."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.rotation = Rotation(shape.context, shape.width // shape.heads)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self._initialise()

    def forward(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor | None = None) -> torch.Tensor:
        """The mean loss where there are targets, else the logits ``BTV``."""
        x_BTD = self.embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.rotation)
        logits_BTV = self.head(self.norm(x_BTD))
        if targets_BT is None:
            return logits_BTV
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    @property
    def parameter_count(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer with learning rate `lr`.

        A row of the embeddings gets a gradient only where its token occurs, so it learns faster; gains of norms and
        embeddings are not decayed.
        """
        embeddings = [self.embedding.weight]
        gains = [parameter for parameter in self.parameters() if parameter.dim() < 2]
        others = {id(parameter) for parameter in [*embeddings, *gains]}
        return [
            {"params": [parameter for parameter in self.parameters() if id(parameter) not in others]},
            {"params": embeddings, "lr": 6 * lr, "weight_decay": 0.0},
            {"params": gains, "weight_decay": 0.0},
        ]

    def _initialise(self) -> None:
        """Small random weights; smaller still where a block writes to the stream, which many blocks share."""
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                continue
            writes = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(weight, std=0.02 / (2 * self.shape.layers) ** 0.5 if writes else 0.02)
