"""A wheel of a stranger whose device is `ds_core.testing.python_device`, for tests of several packages."""

from __future__ import annotations

import socket
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from ds_core import plugins
from ds_core.accelerator import Accelerator
from ds_core.hooks import AcceleratorEntry, Availability, hookimpl
from ds_core.testing import run_ranks
from ds_core.testing.python_device import load

STEPS = 3


def on_the_device(fn: Callable[..., Any], *args: Any, world: int = 1) -> list[Any]:
    """`fn` on ranks that ran nothing before it, and make the process group themselves."""
    return run_ranks(fn, world, *args, fresh=True, init=False, env=_meeting())


def on_the_host(fn: Callable[..., Any], *args: Any, world: int = 1) -> list[Any]:
    """`fn` on ranks that make the process group themselves."""
    return run_ranks(fn, world, *args, init=False, env=_meeting())


def _meeting() -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}


class SlateAccelerator(Accelerator):
    """A name, a device type, and nothing that the device can do."""

    name: ClassVar[str] = "slate"
    device_type: ClassVar[str] = "slate"

    def __init__(self) -> None:
        load("slate")


def install() -> None:
    """Offers the accelerator in this process; again is fine."""
    manager = plugins.manager()
    if manager.find("slate"):
        return
    module = types.ModuleType("acme_slate")
    module.__file__ = __file__

    def ds_accelerators() -> Sequence[AcceleratorEntry]:
        return [
            AcceleratorEntry(
                "slate", is_available=lambda: Availability(True, "", 1), factory=f"{__name__}:SlateAccelerator"
            )
        ]

    vars(module).update(DS_HOOK_API=(1, 0), ds_accelerators=hookimpl(ds_accelerators))
    manager.add_module(module, "acme-slate:slate", "1.0")
    manager.memo.pop("accelerator candidates", None)


class Net(nn.Module):
    """Two layers and a norm, made with the same weights each time; `forward` gives the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Linear(6, 10), nn.LayerNorm(10), nn.Linear(10, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.norm(self.first(x)))).square().mean()


def make(accelerator: str, config: Mapping[str, Any]) -> Any:
    """An engine over `Net` on an accelerator."""
    import ds_core

    if accelerator == SlateAccelerator.name:  # a process of the host's own runs other tests afterwards
        install()
    base = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 0.05,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-3}},
    }
    return ds_core.initialize(model=Net(), config={**base, **config}, accelerator=accelerator)[0]


Run = tuple[list[float], dict[str, torch.Tensor]]


def train(accelerator: str, configs: Sequence[Mapping[str, Any]]) -> list[Run]:
    """For each config the losses of this rank, and the weights at the end as host tensors."""
    results = []
    for config in configs:
        engine = make(accelerator, config)
        results.append((advance(engine, STEPS), weights_of(engine)))
        engine.destroy()
    return results


def advance(engine: Any, steps: int) -> list[float]:
    """Trains; the data depends on the step and the rank only."""
    from ds_core import comm

    losses = []
    for step in range(engine.global_steps, engine.global_steps + steps):
        generator = torch.Generator().manual_seed(10 * step + comm.get_rank())
        loss = engine(torch.randn(4, 6, generator=generator).to(engine.device))
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    """The weights as host tensors."""
    parameters = dict(engine.module.named_parameters())
    with engine.gathered(list(parameters.values())):
        return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
