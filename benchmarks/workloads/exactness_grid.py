"""The grid of the exactness table: what is varied, one way to train for every column, and how far two results are.

A cell says what is trained; a column says by what: the engine at a stage, with or without offload, torch's
DistributedDataParallel, or a loop by hand with plain torch. All of them start from the same weights, see the same data,
take `STEPS` steps of AdamW and leave an `Outcome`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ds_core.testing.parity import FEATURES, MODELS

STEPS = 10
ROWS = 4
"""Rows of a micro-batch."""

ADAM = {"lr": 1e-2, "weight_decay": 0.1}
CLIP = 0.05
SMALL_BUCKET = 100
PERSISTENT_NUMEL = 20
"""Parameters above it are sharded at stage 3, so that nearly all of these tiny ones are."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_SCALE = {"fp32": 1.0, "bf16": 1.0, "fp16": 256.0}
NORM = 1e-13
"""Largest relative difference of a norm whose squares are the same numbers, added up in other groups."""

BOUND_ULPS = {"fp32": 128, "bf16": 16, "fp16": 16}
"""Largest distance after ten steps of AdamW where sums are in another order; docs/explanation/exactness.md says why."""

SETTINGS = ("one bucket", "small buckets", "small buckets, clipped")


class Zoo(nn.Module):
    """All at once: odd sizes, a module used twice, tied weights; a frozen, an unused, an empty parameter; a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, 13)
        self.twice = nn.Linear(13, 13)
        self.frozen = nn.Linear(13, 13).requires_grad_(False)
        self.unused = nn.Linear(3, 5)
        self.head = nn.Linear(13, 13, bias=False)
        self.head.weight = self.twice.weight
        self.last = nn.Linear(13, FEATURES)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        """Outputs as wide as inputs."""
        h = torch.tanh(self.embed(x_BF))
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        result: torch.Tensor = self.last(self.head(self.frozen(h)) * self.gain)
        return result


def make_model(name: str) -> nn.Module:
    """A fresh model of the grid, the same on every rank."""
    if name in MODELS:
        return MODELS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        return Zoo()


MODEL_NAMES = {
    "mlp": "odd sizes",
    "odd": "scalars, an empty parameter",
    "reused": "reused module",
    "tied": "tied weights",
    "frozen": "frozen parameters",
    "unused": "unused parameter",
    "zoo": "all of these",
}
"""Models, and what a reader calls them."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is trained: everything but by whom."""

    model: str = "zoo"
    dtype: str = "fp32"
    ranks: int = 2
    accumulation: int = 1
    backwards: int = 1
    setting: str = SETTINGS[0]

    @property
    def name(self) -> str:
        """The cell's key in files of golden values."""
        many = f"{self.accumulation} micro-batches, {self.backwards} backwards"
        return f"{self.dtype}, {self.ranks} ranks, {many}, {self.setting}, {self.model}"

    @property
    def is_single(self) -> bool:
        """Whether a step has one backward, so that there is one order of sums."""
        return self.accumulation * self.backwards == 1

    @property
    def clip(self) -> float:
        """Largest gradient norm; 0 does not clip."""
        return CLIP if "clipped" in self.setting else 0.0

    @property
    def bucket_numel(self) -> int:
        """Elements of a bucket."""
        return SMALL_BUCKET if "small" in self.setting else 500_000_000


def grid(
    *,
    models: Iterable[str] = MODEL_NAMES,
    dtypes: Iterable[str] = DTYPES,
    ranks: Iterable[int] = (2, 4),
    accumulation: Iterable[int] = (1, 3),
    backwards: Iterable[int] = (1, 2),
    settings: Iterable[str] = SETTINGS,
) -> list[Cell]:
    """Every combination."""
    return [Cell(*values) for values in itertools.product(models, dtypes, ranks, accumulation, backwards, settings)]


@dataclasses.dataclass(frozen=True)
class Column:
    """By what a cell is trained.

    Attributes:
        name: what the table calls it.
        against: the column it is compared with.
        zero: the engine's ``zero_optimization``; None: not the engine.
        torch_adam: the engine steps torch's fused AdamW, so that it can be compared with loops that do.
        by: what trains where it is not the engine: "ddp"; "loop", where gradients meet at the step; "each", where they
            meet in every backward.
    """

    name: str
    against: str | None = None
    zero: Mapping[str, Any] | None = None
    torch_adam: bool = False
    by: str = ""


HOST = {"device": "cpu"}
NVME = {"device": "nvme", "nvme_path": "{folder}"}
COLUMNS = (
    Column("stage 0", None, {"stage": 0}),
    Column("stage 1", "stage 0", {"stage": 1}),
    Column("stage 2", "stage 1", {"stage": 2}),
    Column("stage 3", "stage 2", {"stage": 3}),
    Column("stage 1, optimizer on host", "stage 1", {"stage": 1, "offload_optimizer": HOST}),
    Column("stage 2, optimizer on host", "stage 2", {"stage": 2, "offload_optimizer": HOST}),
    Column("stage 3, all on host", "stage 3", {"stage": 3, "offload_optimizer": HOST, "offload_param": HOST}),
    Column("stage 3, optimizer on NVMe", "stage 3", {"stage": 3, "offload_optimizer": NVME}),
    Column("stage 3, all on NVMe", "stage 3", {"stage": 3, "offload_optimizer": NVME, "offload_param": NVME}),
    Column("stage 0, torch's AdamW", None, {"stage": 0}, torch_adam=True),
    Column("stage 2, torch's AdamW", None, {"stage": 2}, torch_adam=True),
    Column("loop", "stage 0, torch's AdamW", by="loop"),
    Column("loop, each backward", "stage 2, torch's AdamW", by="each"),
    Column("DDP", "stage 0, torch's AdamW", by="ddp"),
)
"""All columns; `served` says which this version has. A new way to train is one line here."""

SEVERAL = ("stage 2, torch's AdamW", "loop, each backward")
"""Columns that do what others do where a step has one backward."""


def served(columns: Sequence[Column] = COLUMNS) -> tuple[list[Column], dict[str, str]]:
    """The columns whose configuration the installed wheels take, and for the others why not."""
    from ds_core.config import load
    from ds_core.errors import ConfigError

    taken, refused = [], {}
    for column in columns:
        try:
            if column.zero is not None:
                load(_filled({"zero_optimization": column.zero}, Path()))
        except ConfigError as error:
            refused[column.name] = str(error).splitlines()[0]
        else:
            taken.append(column)
    return taken, refused


@dataclasses.dataclass
class Outcome:
    """What training leaves on one rank.

    Attributes:
        losses: of every backward, in order.
        norms: gradient norm of each step.
        weights: the model's parameters.
        masters: the same in float32 as the optimizer has them, which is more where the working type is narrower.
    """

    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]
    masters: dict[str, torch.Tensor]

    def digest(self) -> str:
        """SHA-256 of names and bits of all parameters."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.masters.items()):
            found.update(name.encode())
            found.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def train_cells(cells: Sequence[Cell], columns: Sequence[str], folder: str) -> list[dict[str, Outcome]]:
    """This rank's outcomes, a dict by column for every cell. Called on all ranks; cells have as many as there are.

    Args:
        columns: names; what only differs where a step has several backwards is left out of other cells.
        folder: where columns that keep state in files may write.
    """
    found = []
    for cell in cells:
        left_out = SEVERAL if cell.is_single else ()
        wanted = [column for column in COLUMNS if column.name in columns and column.name not in left_out]
        found.append({column.name: train(cell, column, Path(folder)) for column in wanted})
    return found


def train(cell: Cell, column: Column, folder: Path) -> Outcome:
    """One cell by one column. Called on all ranks."""
    return _by_engine(cell, column, folder) if column.zero is not None else _by_hand(cell, column.by)


# --- the engine -----------------------------------------------------------------------------------------------------


def config_of(cell: Cell, column: Column, folder: Path) -> dict[str, Any]:
    """The engine's configuration of a cell and a column."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_accumulation_steps": cell.accumulation,
        "gradient_clipping": cell.clip,
        "optimizer": {"type": "AdamW", "params": {**ADAM, **({"torch_adam": True} if column.torch_adam else {})}},
        "zero_optimization": {
            "reduce_bucket_size": cell.bucket_numel,
            "param_persistence_threshold": PERSISTENT_NUMEL,
            **(column.zero or {}),
        },
    }
    if cell.dtype != "fp32":
        config[cell.dtype] = {"enabled": True}
    if cell.dtype == "fp16":
        config["fp16"]["loss_scale"] = LOSS_SCALE["fp16"]
    return _filled(config, folder)


def _filled(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(each, folder) for key, each in value.items()}
    return value.replace("{folder}", str(folder)) if isinstance(value, str) else value


def _by_engine(cell: Cell, column: Column, folder: Path) -> Outcome:
    import torch.distributed as dist

    import ds_core
    from ds_core.utils import safe_get_full_fp32_param

    model = make_model(cell.model)
    engine = ds_core.initialize(model=model, config=config_of(cell, column, folder))[0]
    losses, norms = [], []
    for step in range(STEPS):
        for x, y in data(cell, dist.get_rank(), step):
            for index, loss in enumerate(losses_of(engine(x), y, cell.backwards)):
                engine.backward(loss, retain_graph=index + 1 < cell.backwards)
                losses.append(float(loss.detach()))
            engine.step()
        norms.append(float(engine.get_global_grad_norm() or 0.0))
    masters = {name: safe_get_full_fp32_param(parameter) for name, parameter in model.named_parameters()}
    weights = {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items() if name in masters}
    engine.destroy()
    return Outcome(losses, norms, weights, masters)


# --- plain torch ----------------------------------------------------------------------------------------------------


def _by_hand(cell: Cell, by: str) -> Outcome:
    """Data-parallel training without the engine; float32 masters are kept by hand for narrower types."""
    import torch.distributed as dist

    dtype, scale = DTYPES[cell.dtype], LOSS_SCALE[cell.dtype]
    bare = make_model(cell.model).to(dtype)
    model: nn.Module = bare
    if by == "ddp":
        model = nn.parallel.DistributedDataParallel(bare, find_unused_parameters=cell.model in ("unused", "zoo"))
    trained = {name: p for name, p in bare.named_parameters() if p.requires_grad}
    masters = {name: nn.Parameter(p.detach().float()) if dtype != torch.float32 else p for name, p in trained.items()}
    optimizer = torch.optim.AdamW(masters.values(), **ADAM, fused=True)
    losses, norms = [], []
    for step in range(STEPS):
        totals: dict[str, torch.Tensor | None] = dict.fromkeys(trained)
        batches = data(cell, dist.get_rank(), step)
        for micro, (x, y) in enumerate(batches):
            is_last = micro + 1 == cell.accumulation
            quiet = model.no_sync() if by == "ddp" and not is_last else contextlib.nullcontext()
            with quiet:
                found = losses_of(model(x), y, cell.backwards)
                losses += [float(loss.detach()) for loss in found]
                if by == "ddp":  # its buckets are reduced once per forward, so there is one backward of the sum
                    found = [sum(found[1:], found[0])]
                for index, loss in enumerate(found):
                    (loss * (scale / cell.accumulation)).backward(retain_graph=index + 1 < len(found))
                    if by == "each":
                        add_over_ranks(trained, totals)
        if by == "loop":
            add_over_ranks(trained, totals)
        elif by == "ddp":
            totals = {name: parameter.grad for name, parameter in trained.items()}
        ranks = 1 if by == "ddp" else cell.ranks
        norms.append(_step(optimizer, masters, totals, factor=1.0 / (ranks * scale), clip=cell.clip))
        for name, parameter in trained.items():
            parameter.grad = None
            if masters[name] is not parameter:
                parameter.data.copy_(masters[name].data)
    fine = {name: masters.get(name, p).detach().float().clone() for name, p in bare.named_parameters()}
    return Outcome(losses, norms, {name: p.detach().clone() for name, p in bare.named_parameters()}, fine)


def add_over_ranks(trained: Mapping[str, nn.Parameter], totals: dict[str, torch.Tensor | None]) -> None:
    """Moves gradients from parameters to `totals`, summed from the first rank to the last, in float32."""
    import torch.distributed as dist

    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained.values()]
    flags = [float(p.grad is not None) for p in trained.values()]
    mine = torch.cat([grads[0].new_tensor(flags), *(grad.reshape(-1) for grad in grads)])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    total = everyone[0].float()
    for piece in everyone[1:]:
        total = total + piece.float()
    used, *sums = total.to(mine.dtype).split([len(flags), *(grad.numel() for grad in grads)])
    for (name, parameter), is_used, reduced in zip(trained.items(), used.tolist(), sums, strict=True):
        if is_used:
            before = totals[name]
            totals[name] = reduced.view_as(parameter) if before is None else before + reduced.view_as(parameter)
        parameter.grad = None


def _step(
    optimizer: torch.optim.Optimizer,
    masters: Mapping[str, nn.Parameter],
    totals: Mapping[str, torch.Tensor | None],
    *,
    factor: float,
    clip: float,
) -> float:
    """Unscales, measures in double precision, clips and updates. Returns the norm."""
    present = [total for total in totals.values() if total is not None]
    norm = math.sqrt(sum(float(total.double().square().sum()) for total in present)) * factor
    if clip and clip / (norm + 1e-6) < 1.0:
        factor *= clip / (norm + 1e-6)
    for name, master in masters.items():
        total = totals[name]
        master.grad = None if total is None else total.to(master.dtype).mul(factor)
    optimizer.step()
    return norm


# --- data and losses ------------------------------------------------------------------------------------------------


def data(cell: Cell, rank: int, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's micro-batches of a step: inputs in the working type, targets in float32, each (ROWS, FEATURES)."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    for _ in range(cell.accumulation):
        x = torch.randn(ROWS, FEATURES, generator=generator)
        yield x.to(DTYPES[cell.dtype]), torch.randn(ROWS, FEATURES, generator=generator)


def losses_of(output: torch.Tensor, target: torch.Tensor, count: int) -> list[torch.Tensor]:
    """One loss for each backward of a micro-batch: the mean of the error's square, and of its size."""
    error = output.float() - target
    return [error.square().mean(), 0.25 * error.abs().mean()][:count]


def first_gradients(cell: Cell, columns: Sequence[str], folder: str) -> dict[str, dict[str, torch.Tensor]]:
    """Mean gradients of the first step by column and parameter, in float32, before clipping. Called on all ranks."""
    import torch.distributed as dist

    import ds_core
    from ds_core.utils import safe_get_full_grad

    found = {}
    for column in COLUMNS:
        if column.name not in columns:
            continue
        model = make_model(cell.model)
        engine = ds_core.initialize(model=model, config=config_of(cell, column, Path(folder)))[0]
        batches = list(data(cell, dist.get_rank(), 0))
        for number, (x, y) in enumerate(batches):
            for index, loss in enumerate(losses_of(engine(x), y, cell.backwards)):
                engine.backward(loss, retain_graph=index + 1 < cell.backwards)
            if number + 1 < len(batches):
                engine.step()
        grads = {name: safe_get_full_grad(p) for name, p in model.named_parameters() if p.requires_grad}
        found[column.name] = {name: grad.clone() for name, grad in grads.items() if grad is not None}
        engine.step()
        engine.destroy()
    return found


def terms(cell: Cell) -> list[dict[str, torch.Tensor]]:
    """This rank's gradients of every backward of the first step, each by itself: what any order of sums adds up."""
    import torch.distributed as dist

    model = make_model(cell.model).to(DTYPES[cell.dtype])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = []
    for x, y in data(cell, dist.get_rank(), 0):
        losses = losses_of(model(x), y, cell.backwards)
        for index, loss in enumerate(losses):
            scaled = loss * (LOSS_SCALE[cell.dtype] / cell.accumulation)
            grads = torch.autograd.grad(
                scaled, list(trained.values()), retain_graph=index + 1 < len(losses), allow_unused=True
            )
            found.append({name: grad for name, grad in zip(trained, grads, strict=True) if grad is not None})
    return found


# --- distances ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far two outcomes are apart; all zero when they are bit-equal.

    Attributes:
        weights: largest difference of a working weight, in units in the last place of its tensor's largest element.
        masters: the same of the float32 masters, in the same units: of the working type.
        losses: largest difference of a loss, in units in the last place of the loss, of the working type.
        norm: largest relative difference of a gradient norm, in double precision.
    """

    weights: float = 0.0
    masters: float = 0.0
    losses: float = 0.0
    norm: float = 0.0

    def __bool__(self) -> bool:
        return any(dataclasses.astuple(self))

    def __or__(self, other: Distance) -> Distance:
        return Distance(*map(max, dataclasses.astuple(self), dataclasses.astuple(other)))


def distance(a: Outcome, b: Outcome) -> Distance:
    """How far `a` and `b` are apart. Names must be the same."""
    if a.weights.keys() != b.weights.keys() or len(a.losses) != len(b.losses):
        raise AssertionError(f"outcomes of different models: {sorted(a.weights.keys() ^ b.weights.keys())}")
    dtype = next(iter(a.weights.values())).dtype
    return Distance(
        weights=max(tensor_ulps(a.weights[name], b.weights[name]) for name in a.weights),
        masters=max(tensor_ulps(a.masters[name], b.masters[name], dtype) for name in a.masters),
        losses=max(tensor_ulps(*map(torch.tensor, pair), dtype) for pair in zip(a.losses, b.losses, strict=True)),
        norm=max(_relative(x, y) for x, y in zip(a.norms, b.norms, strict=True)),
    )


def must_be_equal(cell: Cell, column: Column) -> bool:
    """Whether the order of sums is the same in a column and the one it is compared with."""
    if column.name == "stage 2":
        return cell.is_single
    if column.by == "ddp":
        return cell.ranks == 2 and cell.backwards == 1
    return True


def is_equal(column: Column, apart: Distance) -> bool:
    """Bit-equal; a loop's norm is added up in another grouping and may differ in the last bit of double precision."""
    norm = NORM if column.by else 0.0
    return not (apart.weights or apart.masters or apart.losses) and apart.norm <= norm


def is_within(cell: Cell, apart: Distance) -> bool:
    """Within `BOUND_ULPS` of the working type, the norm too."""
    allowed = BOUND_ULPS[cell.dtype]
    is_near = max(apart.weights, apart.masters, apart.losses) <= allowed
    return is_near and apart.norm <= allowed * torch.finfo(DTYPES[cell.dtype]).eps


def tensor_ulps(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype | None = None) -> float:
    """Largest difference in units in the last place of the tensor's largest element; 0 only for the same bits.

    Args:
        dtype: whose last place; None: that of `a`.
    """
    if a.dtype != b.dtype or a.shape != b.shape:
        raise AssertionError(f"{a.dtype} {tuple(a.shape)} is not {b.dtype} {tuple(b.shape)}")
    kind = {2: torch.int16, 4: torch.int32}[a.element_size()]
    if not a.numel() or torch.equal(a.contiguous().view(kind), b.contiguous().view(kind)):
        return 0.0
    kinds = torch.finfo(dtype or a.dtype)
    largest = max(float(a.abs().max()), kinds.smallest_normal)
    unit = kinds.eps * 2.0 ** math.floor(math.log2(largest)) if math.isfinite(largest) else math.nan
    apart = float((a.double() - b.double()).abs().max()) / unit
    return math.inf if math.isnan(apart) else max(apart, 2.0**-20)  # the least, for zeros of two signs


def _relative(a: float, b: float) -> float:
    apart = abs(a - b) / max(abs(a), abs(b), 1e-300)
    return math.inf if math.isnan(apart) else apart
