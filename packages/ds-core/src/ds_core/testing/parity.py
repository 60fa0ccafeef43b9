"""Does the engine give the numbers of plain torch? Tiny models with the awkward shapes, and two ways to train them.

`train_plain` is the loop a user would write with one process and all the data. `train_engine` runs the same steps
through `ds_core.initialize`, on this rank's share of each batch; on one rank, or under `run_ranks`. Both return a
`Run`, and `compare_runs` says where two of them part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = [
    "MODELS",
    "Run",
    "assert_bit_equal",
    "compare_runs",
    "make_data",
    "train_engine",
    "train_plain",
    "ulp_distance",
]

FEATURES = 7
"""Input and output width of every model here: odd, so that nothing divides evenly."""

ModelFn = Callable[[], nn.Module]
LossFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Mlp(nn.Module):
    """Two odd-sized layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 13)
        self.second = nn.Linear(13, FEATURES)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x_BF)))  # type: ignore[no-any-return]


class _Reused(nn.Module):
    """One module called three times: its gradient arrives in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x_BF = torch.tanh(self.layer(x_BF))
        return x_BF


class _Tied(nn.Module):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(FEATURES, FEATURES, bias=False)
        self.decode = nn.Linear(FEATURES, FEATURES)
        self.decode.weight = self.encode.weight

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        return self.decode(torch.tanh(self.encode(x_BF)))  # type: ignore[no-any-return]


class _Frozen(_Mlp):
    """The first layer does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)


class _Unused(_Mlp):
    """A layer that no forward pass reaches: its gradient stays None."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 5)


class _Odd(nn.Module):
    """Scalars, an empty parameter, and one element: sizes that buckets and shards stumble over."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, FEATURES)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.shift = nn.Parameter(torch.tensor([0.25]))
        self.nothing = nn.Parameter(torch.empty(0, 3))

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x_BF) * self.scale + self.shift + self.nothing.sum()
        return result


def _seeded(kind: type[nn.Module]) -> ModelFn:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1234)
            return kind()

    return make


MODELS: Mapping[str, ModelFn] = {
    "mlp": _seeded(_Mlp),
    "reused": _seeded(_Reused),
    "tied": _seeded(_Tied),
    "frozen": _seeded(_Frozen),
    "unused": _seeded(_Unused),
    "odd": _seeded(_Odd),
}
"""Models by name; each call gives the same fresh weights on every rank."""


@dataclass
class Run:
    """What a training run leaves: per optimizer step the mean loss and the gradient norm, and the last parameters."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    params: dict[str, torch.Tensor] = field(default_factory=dict)


def make_data(steps: int, batch_size: int, *, seed: int = 7, dtype: torch.dtype = torch.float32) -> list[Any]:
    """One (input, target) pair of `batch_size` rows for each optimizer step."""
    generator = torch.Generator().manual_seed(seed)
    rows = (batch_size, FEATURES)
    return [
        (torch.randn(rows, generator=generator).to(dtype), torch.randn(rows, generator=generator).to(dtype))
        for _ in range(steps)
    ]


def _mse(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(output.float(), target.float())


def _adam(params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-2)


def train_plain(
    model_fn: ModelFn,
    data: Sequence[Any],
    steps: int | None = None,
    *,
    optimizer_fn: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer] = _adam,
    loss_fn: LossFn = _mse,
    clip: float | None = None,
    pieces: int = 1,
    norm: bool = True,
) -> Run:
    """Train on one process with torch alone.

    Args:
        model_fn: makes the model.
        data: one (input, target) pair for each optimizer step, see `make_data`.
        steps: how many of them; all when None.
        optimizer_fn: makes the optimizer from the trainable parameters.
        loss_fn: mean loss of a batch.
        clip: largest gradient norm; None does not clip.
        pieces: split each batch into this many equal micro-batches and average their gradients, in order, as ranks and
            accumulation do together.
        norm: record gradient norms.
    """
    model = model_fn()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_fn(trained)
    run = Run()
    for x, y in data[: len(data) if steps is None else steps]:
        losses = []
        for x_part, y_part in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            loss = loss_fn(model(x_part), y_part)
            (loss / pieces).backward()
            losses.append(float(loss.detach()))
        if norm or clip is not None:
            total = torch.nn.utils.clip_grad_norm_(trained, float("inf") if clip is None else clip)
            run.grad_norms.append(float(total))
        optimizer.step()
        optimizer.zero_grad()
        run.losses.append(sum(losses) / pieces)
    run.params = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return run


def train_engine(
    model_fn: ModelFn,
    config: Mapping[str, Any],
    data: Sequence[Any],
    steps: int | None = None,
    *,
    loss_fn: LossFn = _mse,
    norm: bool = True,
    read_params: Callable[[Any], Mapping[str, torch.Tensor]] | None = None,
    **initialize: Any,
) -> Run:
    """Train through ``ds_core.initialize``, each rank on its share of every batch. Called on all ranks.

    Rows go to ranks and micro-batches in order: rank r gets the r-th share of each batch, and the share is cut into
    as many micro-batches as the engine accumulates, so `train_plain` with ``pieces = ranks x accumulation`` adds up
    the same gradients.

    Args:
        model_fn, data, steps, loss_fn: as for `train_plain`.
        config: the engine's config; each batch of `data` must hold `train_batch_size` rows.
        norm: record gradient norms.
        read_params: full parameters by name from the engine; default reads ``engine.module``, which is right while
            every rank holds whole parameters.
        initialize: more arguments for ``ds_core.initialize``.
    """
    import ds_core
    from ds_core import comm

    model = model_fn()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = ds_core.initialize(model=model, model_parameters=trained, config=dict(config), **initialize)
    rank, world = comm.get_rank(), comm.get_world_size()
    accumulation: int = engine.gradient_accumulation_steps()
    run = Run()
    for x, y in data[: len(data) if steps is None else steps]:
        losses = []
        for x_part, y_part in _share(x, y, rank, world, accumulation):
            loss = loss_fn(engine(x_part), y_part)
            engine.backward(loss)
            engine.step()
            losses.append(float(loss.detach()))
        everyone = comm.gather_json(losses)
        run.losses.append(sum(sum(each) for each in everyone) / (world * accumulation))
        if norm:
            total = engine.get_global_grad_norm()
            run.grad_norms.append(float("nan") if total is None else float(total))
    params = read_params(engine) if read_params is not None else dict(engine.module.named_parameters())
    run.params = {name: parameter.detach().float().clone() for name, parameter in params.items()}
    return run


def _share(
    x: torch.Tensor, y: torch.Tensor, rank: int, world: int, accumulation: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = len(x)
    if rows % (world * accumulation):
        raise ValueError(f"a batch of {rows} rows does not split over {world} ranks x {accumulation} micro-batches")
    mine = slice(rank * rows // world, (rank + 1) * rows // world)
    yield from zip(x[mine].chunk(accumulation), y[mine].chunk(accumulation), strict=True)


_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def ulp_distance(a: torch.Tensor, b: torch.Tensor) -> int:
    """The largest number of representable values between elements of `a` and `b` (same dtype and shape).

    0 means bit-equal but for the sign of zero; NaNs count as equal to NaNs and infinitely far (2^63 - 1) from others.
    """
    if a.dtype != b.dtype or a.shape != b.shape:
        raise AssertionError(f"cannot compare {a.dtype} {tuple(a.shape)} with {b.dtype} {tuple(b.shape)}")
    if not a.numel():
        return 0
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    if not a.is_floating_point():
        return int((a.to(torch.int64) - b.to(torch.int64)).abs().max())
    nans = torch.isnan(a) | torch.isnan(b)
    if bool((torch.isnan(a) != torch.isnan(b)).any()):
        return 2**63 - 1
    distance = (_ordered(a) - _ordered(b)).abs()
    return int(distance.masked_fill(nans, 0).max())


def _ordered(x: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the floats, neighbours one apart."""
    bits = x.view(_INTEGER[x.element_size()]).to(torch.int64)
    lowest = -(1 << (8 * x.element_size() - 1))
    return torch.where(bits < 0, lowest - bits, bits)


def assert_bit_equal(a: torch.Tensor, b: torch.Tensor, name: str = "tensor") -> None:
    """Fail unless `a` and `b` are the same bits; the message counts and shows the differences."""
    if a.dtype != b.dtype or a.shape != b.shape:
        raise AssertionError(f"{name}: {a.dtype} {tuple(a.shape)} is not {b.dtype} {tuple(b.shape)}")
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    if not a.numel():
        return
    kind = _INTEGER[a.element_size()]
    different = (a.view(kind) != b.view(kind)).reshape(-1)
    if bool(different.any()):
        at = int(different.nonzero()[0])
        raise AssertionError(
            f"{name}: {int(different.sum())} of {a.numel()} elements differ, by up to {ulp_distance(a, b)} ulp; the "
            f"first at {at}: {a.reshape(-1)[at].item()!r} is not {b.reshape(-1)[at].item()!r}"
        )


def compare_runs(a: Run, b: Run, *, ulps: int | None = None, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Fail where two runs part: bit for bit, or within `ulps` (float32), or within `rtol` and `atol`.

    A gradient norm recorded by only one of them is not compared.
    """
    if len(a.losses) != len(b.losses) or a.params.keys() != b.params.keys():
        only = sorted(a.params.keys() ^ b.params.keys())
        raise AssertionError(f"the runs differ in kind: {len(a.losses)} and {len(b.losses)} steps, parameters {only}")
    pairs = [("losses", torch.tensor(a.losses), torch.tensor(b.losses))]
    if a.grad_norms and b.grad_norms:
        pairs.append(("grad norms", torch.tensor(a.grad_norms), torch.tensor(b.grad_norms)))
    pairs += [(name, a.params[name], b.params[name]) for name in a.params]
    for name, left, right in pairs:
        if rtol or atol:
            try:
                torch.testing.assert_close(left, right, rtol=rtol, atol=atol)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None
        elif ulps is None:
            assert_bit_equal(left, right, name)
        else:
            distance = ulp_distance(left, right)
            if distance > ulps:
                raise AssertionError(f"{name}: {distance} ulp apart, allowed {ulps}")
