"""A model that ranks divide in two ways, and the plugin that does: experts over an axis, stages with a tied weight.

Both are as simple as they can be while each rank holds what others do not: every row goes through all experts, and the
two stages each have a loss of their own on the same rows, which one process adds.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn

from ds_core import comm, plugins
from ds_core.build import Build
from ds_core.holdings import Holding, Replicas, keep_slice, share_names
from ds_core.hooks import AxisRequest, TransformEntry, hookimpl

FEATURES = 6
EXPERTS = 4
IDLE = "3"
"""An expert no row goes to: its weights must not even decay, whatever those at its place on other ranks do.

Not at stage 3, where ranks gather what they call: modules that communicate must then be called alike on all of them.
"""


class _AllRows(torch.autograd.Function):
    """The rows of all ranks of a group; backward adds."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, who: Replicas) -> torch.Tensor:
        ctx.who = who
        out = x.new_empty(who.ranks * x.shape[0], x.shape[1])
        comm.all_gather_into_tensor(out, x.contiguous(), group=who.group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _scattered(grad, ctx.who), None


class _OwnRows(torch.autograd.Function):
    """This rank's rows of the sum over a group; backward gathers."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, who: Replicas) -> torch.Tensor:
        ctx.who = who
        return _scattered(x, who)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _AllRows.apply(grad, ctx.who), None


def _scattered(x: torch.Tensor, who: Replicas) -> torch.Tensor:
    out = x.new_empty(x.shape[0] // who.ranks, x.shape[1])
    comm.reduce_scatter_tensor(out, x.contiguous(), group=who.group)
    return out


class Experts(nn.Module):
    """Adds what all experts make of a row: of stacked weights, and of modules under the numbers of their experts."""

    def __init__(self) -> None:
        super().__init__()
        self.stacked = nn.Parameter(torch.randn(EXPERTS, FEATURES, FEATURES) * 0.3)
        self.alone = nn.ModuleDict({str(i): nn.Linear(FEATURES, FEATURES) for i in range(EXPERTS)})
        self.fixed = nn.Parameter(torch.randn(EXPERTS, FEATURES), requires_grad=False)
        self.who: Replicas | None = None
        self.is_one_idle = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x if self.who is None else _AllRows.apply(x, self.who)
        made = torch.einsum("bi,eoi->bo", rows, self.stacked) + (rows * self.fixed.sum(0))
        for number, expert in self.alone.items():
            if number != IDLE or not self.is_one_idle:
                made = made + torch.tanh(expert(rows))
        return made if self.who is None else _OwnRows.apply(made, self.who)


class Mixture(nn.Module):
    """A dense layer, experts, a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.experts = Experts()
        self.last = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.experts(torch.tanh(self.first(x)))))


class Stage(nn.Module):
    """A layer before the tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)


class Staged(nn.Module):
    """Two stages that share a weight; the output has the columns of both."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Linear(FEATURES, FEATURES)
        self.stages = nn.ModuleDict({"0": Stage(), "1": Stage()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.tied(torch.tanh(stage.layer(x))) for stage in self.stages.values()], dim=1)


def divide_experts(module: nn.Module, build: Build) -> nn.Module:
    """Leaves this rank its share of the experts."""
    experts = module.experts
    if build.mesh.size("expert") == 1:
        return module
    experts.who = build.mesh.replicas("expert")
    keep_slice(build, experts.stacked, "expert")
    keep_slice(build, experts.fixed, "expert")
    each = EXPERTS // build.mesh.size("expert")
    for number in range(EXPERTS):
        if number // each != build.mesh.rank("expert"):
            del experts.alone[str(number)]
    build.split_over(experts.alone.parameters(), "expert", sliced=False)
    share_names(build, module, build.mesh.group("expert"))
    return module


def divide_stages(module: nn.Module, build: Build) -> nn.Module:
    """Leaves this rank its stage, and the tied weight."""
    mesh = build.mesh
    if mesh.size("half") == 1:
        return module
    del module.stages[str(1 - mesh.rank("half"))]
    everyone = [sorted(range(mesh.plan.world_size))]
    replicas = mesh.replicas_of(everyone, "tied")
    assert replicas is not None
    for parameter in module.tied.parameters():
        build.holdings[parameter] = Holding(replicas)
    share_names(build, module, mesh.group("half"))
    return module


def install() -> None:
    """Registers the plugin with this process's manager. In processes that are used for nothing else."""
    made = types.ModuleType("divided")
    made.__file__ = __file__
    vars(made)["DS_HOOK_API"] = (1, 3)

    @hookimpl
    def ds_mesh_axes(config: Any, model: Any) -> list[AxisRequest]:
        size = getattr(model, "ranks", 1)
        if isinstance(model, Mixture):
            return [AxisRequest("expert", size, 300, splits_batch=True)]
        return [AxisRequest("half", size, 100)] if isinstance(model, Staged) else []

    @hookimpl
    def ds_transforms(build: Build) -> list[TransformEntry]:
        if isinstance(build.module, Mixture):
            return [TransformEntry("divided", divide_experts, after=("zero_values",))]
        return [TransformEntry("divided", divide_stages)] if isinstance(build.module, Staged) else []

    vars(made).update(ds_mesh_axes=ds_mesh_axes, ds_transforms=ds_transforms)
    plugins.manager().add_module(made, "divided:divided", "1.0")


def mixture() -> Mixture:
    """The same weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Mixture()


def staged() -> Staged:
    """The same weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return Staged()
