"""The model, data and settings of the golden checkpoints; run under torchrun with DeepSpeed installed, it writes one.

    torchrun --nproc-per-node 2 program.py CASE FOLDER

`tools/golden_deepspeed.py` runs it for every case. Tests import it for the model and the data, and need no DeepSpeed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

STEPS = 3
"""Updates before the checkpoint; one more is made after it, and its result recorded."""
WORDS, WIDTH, INNER, ROWS = 11, 6, 7, 8
CLIENT_STATE = {"epoch": 4, "note": "hi", "best": [0.5, None], "odd": {1, 2}}
"""``odd`` is not plain, and is left out by whoever reads it."""


@dataclass(frozen=True)
class Case:
    """One run: ZeRO stage, dtype, optimizer, number of ranks, and what else is in ``zero_optimization``.

    `universal` is "kept" where DeepSpeed's conversion to the universal format is itself a golden checkpoint, and "read"
    where it only gives the values that must come out.
    """

    stage: int
    dtype: str = "fp32"
    optimizer: str = "adamw"
    ranks: int = 2
    zero: dict[str, Any] = field(default_factory=dict)
    universal: str = ""


CASES = {
    "z0-fp32": Case(0),
    "z0-bf16": Case(0, "bf16"),
    "z0-fp16-fused": Case(0, "fp16", "fused"),
    "z1-fp32": Case(1, universal="read"),
    "z1-fp32-alone": Case(1, ranks=1),
    "z1-fp16": Case(1, "fp16", universal="read"),
    "z1-fused": Case(1, "fp32", "fused", universal="read"),
    "z1-elastic": Case(1, zero={"elastic_checkpoint": True}),
    "z2-bf16": Case(2, "bf16", universal="kept"),
    "z2-sgd": Case(2, "fp32", "sgd"),
    "z3-fp32": Case(3, zero={"sub_group_size": 20}, universal="kept"),
    "z3-bf16": Case(3, "bf16"),
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Tiny(nn.Module):
    """Tied embeddings, frozen layer, buffer; every kind of tensor a checkpoint has to tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.body = nn.Linear(WIDTH, INNER)
        self.frozen = nn.Linear(INNER, WIDTH).requires_grad_(False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor([0.5, 1.5, 1.0, 1.0, 1.0, 2.0]))
        values = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=values) * 0.3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """The loss of predicting, for every ROWS words, the same words backwards."""
        x = self.frozen(torch.tanh(self.body(self.embed(words))))
        x = self.norm(x * self.scale.to(x.dtype))
        return nn.functional.cross_entropy(self.head(x).float(), words.view(-1, ROWS).flip(1).reshape(-1))


def batch(step: int, rank: int) -> torch.Tensor:
    """The ROWS words that `rank` sees at `step`."""
    return torch.randint(0, WORDS, (ROWS,), generator=torch.Generator().manual_seed(100 * step + rank))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two optimizer groups: matrices decay, vectors do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def config(case: Case) -> dict[str, Any]:
    """What both engines understand; the optimizer is made by hand, but for ``fused``."""
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": case.stage},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10, "warmup_max_lr": 0.01}},
    }
    if case.dtype != "fp32":
        found[case.dtype] = {"enabled": True}
    if case.dtype == "fp16":
        found["fp16"] |= {"initial_scale_power": 8, "loss_scale_window": 2, "hysteresis": 2}
    return found


def optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    """torch's optimizer of the case."""
    if case.optimizer == "sgd":
        return torch.optim.SGD(groups(model), lr=0.05, momentum=0.9)
    return torch.optim.AdamW(groups(model), lr=0.01)


def main(name: str, folder: Path) -> None:
    """Trains, saves ``folder/<name>`` and, on rank 0, what must come out of it as ``folder/<name>/expected.pt``."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    case, model = CASES[name], Tiny()
    if case.dtype == "fp16":  # the CPU has it, if slowly; nothing else is asked of it here
        get_accelerator().is_fp16_supported = lambda: True
    settings = config(case)
    settings["zero_optimization"] |= case.zero
    settings["zero_allow_untested_optimizer"] = True
    arguments: dict[str, Any] = {"optimizer": optimizer(case, model)}
    if case.optimizer == "fused":
        settings["optimizer"] = {"type": "AdamW", "params": {"lr": 0.01}}
        arguments = {"model_parameters": groups(model)}
    if case.stage == 3:
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    engine, *_ = deepspeed.initialize(model=model, config=settings, **arguments)
    rank = deepspeed.comm.get_rank()

    def step(number: int) -> None:
        engine.backward(engine(batch(number, rank)))
        engine.step()

    def weights() -> dict[str, torch.Tensor]:
        found = {}
        for key, parameter in engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=case.stage == 3):
                found[key] = parameter.detach().clone()
        return found

    for number in range(STEPS):
        step(number)
    engine.save_checkpoint(str(folder / name), tag="global_step3", client_state=CLIENT_STATE)
    expected: dict[str, torch.Tensor] = {f"model/{key}": value for key, value in weights().items()}
    for key, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if case.stage == 3:
            master = safe_get_full_fp32_param(parameter).clone()
            states = {state: safe_get_full_optimizer_state(parameter, state) for state in ("exp_avg", "exp_avg_sq")}
        elif case.stage == 0 and case.dtype == "fp32":
            master, states = parameter, engine.optimizer.state[parameter]
        else:
            continue
        if case.dtype != "fp32":
            expected[f"optimizer/master/{key}"] = master
        for state in ("exp_avg", "exp_avg_sq"):
            expected[f"optimizer/{state}/{key}"] = states[state].detach().clone()
    step(STEPS)
    expected |= {f"next/{key}": value for key, value in weights().items()}
    expected["lr"] = torch.tensor(engine.get_lr(), dtype=torch.float64)
    if rank == 0:
        torch.save(expected, folder / name / "expected.pt")
    deepspeed.comm.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
