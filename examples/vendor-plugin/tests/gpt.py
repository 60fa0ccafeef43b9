"""A small GPT and the ways the tests train it: by plain torch, and by the engine on each rank."""

from __future__ import annotations

import socket
from typing import Any

import torch
from torch import nn
from torch.nn import functional

VOCABULARY, WIDTH, HEADS, LENGTH, ROWS = 37, 24, 3, 11, 4


class Block(nn.Module):
    """Attention and a feed-forward layer, each on a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x_BTW: torch.Tensor) -> torch.Tensor:
        b, t, _ = x_BTW.shape
        q, k, v = (
            part.view(b, t, HEADS, -1).transpose(1, 2) for part in self.qkv(self.norm[0](x_BTW)).split(WIDTH, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTW = x_BTW + self.out(mixed.transpose(1, 2).reshape(b, t, WIDTH))
        return x_BTW + self.down(functional.gelu(self.up(self.norm[1](x_BTW))))


class Gpt(nn.Module):
    """Two blocks, the head tied to the embedding; `forward` gives the loss. Made with the same weights each time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        x_BTW = self.tokens(ids_BT) + self.places[: ids_BT.shape[1]]
        logits_BTV = self.head(self.norm(self.blocks(x_BTW)))
        return functional.cross_entropy(logits_BTV[:, :-1].float().flatten(0, 1), ids_BT[:, 1:].flatten())


def batches(steps: int, seed: int) -> list[torch.Tensor]:
    """Token ids for each step, on the host."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator) for _ in range(steps)]


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def meeting() -> dict[str, Any]:
    """Arguments of `run_ranks` with which the ranks make the process group themselves."""
    return {"init": False, "env": {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}}


def config(stage: int, **more: Any) -> dict[str, Any]:
    """The engine's config. torch's fused Adam on either device, because others round otherwise."""
    return {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_clipping": 0.5,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1, "torch_adam": True, "fused": True}},
        "zero_optimization": {"stage": stage},
        **more,
    }


def train_engine(accelerator: str, stage: int, steps: int = 4, **more: Any) -> dict[str, Any]:
    """Trains on this rank; losses, parameters as host tensors, and what the device says of itself."""
    import ds_core
    from ds_core import comm
    from ds_core.accelerator import select

    with select(accelerator).device(0):  # the device draws what the host would
        model = Gpt()
    engine = ds_core.initialize(model=model, config=config(stage, **more), accelerator=accelerator)[0]
    losses = []
    for ids in batches(steps, seed=comm.get_rank()):
        loss = engine(ids.to(engine.device))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    params = {name: p.detach().cpu() for name, p in engine.module.named_parameters()}
    devices = {p.device.type for p in engine.module.parameters()}
    state = engine.optimizer.optimizer.state
    devices |= {t.device.type for slots in state.values() for t in slots.values() if torch.is_tensor(t) and t.dim()}
    engine.destroy()
    return {"losses": losses, "params": params, "devices": devices}
