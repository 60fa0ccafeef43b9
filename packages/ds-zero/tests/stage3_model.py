"""A model whose blocks are gathered and dropped, and training of it at any stage."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ds_core.placeholder import is_placeholder

WIDTH = 12
STEPS = 4


class Block(nn.Module):
    """Two linears, one of them of odd size."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 19), nn.Linear(19, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """Blocks run as `mode` says; `rank` and `step` steer branches."""

    def __init__(self, mode: str, blocks: int = 4) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mode = mode
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.last = nn.Linear(WIDTH, WIDTH)
        self.rank = self.step = 0
        if mode == "frozen":
            for parameter in self.blocks[1].parameters():
                parameter.requires_grad_(False)
        if mode == "first frozen":
            for block in self.blocks[:2]:
                block.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in self.order():
            block = self.blocks[index]
            if self.mode.startswith("recompute"):
                x = checkpoint(block, x, use_reentrant=self.mode == "recompute re-entrant")
            else:
                x = block(x)
        if self.mode == "outside":  # another module's weights, and after it ran
            x = F.linear(F.linear(x, self.blocks[0].up.weight), self.blocks[0].down.weight)
        if self.mode == "transposed":
            x = x @ self.last.weight.t().contiguous() @ self.last.weight
        return self.last(x)

    def order(self) -> list[int]:
        count = len(self.blocks)
        if self.mode == "reused":
            return [0, 1, 0, 2, 3, 0]
        if self.mode == "reversed":
            return list(range(count))[::-1]
        if self.mode == "changing":
            return [[0, 1, 2, 3], [3, 1, 0, 2], [0, 3]][self.step % 3]
        if self.mode == "skipping":  # ranks take different branches
            return [0, 1 + self.rank % 2, 3] if self.step % 2 else [0, 2, 3, 1][: 3 + self.rank % 2]
        if self.mode == "unused":
            return [0, 1, 3]
        return list(range(count))


def make(stage: int, mode: str, **extra):
    import ds_core

    model = Net(mode)
    zero = {"stage": stage, "param_persistence_threshold": 20, **extra.pop("zero", {})}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.5,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1}},
        "zero_optimization": zero,
        **extra,
    }
    return model, ds_core.initialize(model=model, config=config)[0]


def space_of(engine):
    return next(part for part in engine.parts if part.name == "weights")._space


def train(stage, mode, *, evaluate=False, steps=STEPS, **extra):
    import torch.distributed as dist

    model, engine = make(stage, mode, **extra)
    model.rank = dist.get_rank()
    generator = torch.Generator().manual_seed(dist.get_rank())
    dtype = torch.bfloat16 if extra.get("bf16") else torch.float32
    losses = []
    for step in range(steps):
        model.step = step
        x = torch.randn(2, WIDTH, generator=generator).to(dtype)
        if evaluate:
            with torch.no_grad():
                losses.append(float(engine(x).float().square().mean()))
        loss = engine(x).float().square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    norm = engine.get_global_grad_norm()
    state = {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}
    if stage == 3:
        assert all(is_placeholder(p.data) for p in space_of(engine).units[0].parameters)
        assert space_of(engine).coordinator.live_numel == 0
    engine.destroy()
    return losses, norm, state


def assert_same(left, right) -> None:
    assert left[0] == right[0]
    assert left[1] == right[1]
    for name in left[2]:
        assert torch.equal(left[2][name], right[2][name]), name
