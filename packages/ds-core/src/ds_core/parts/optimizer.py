"""Optimizer step: applies reduced gradients to the master pieces and rounds them back into the working weights."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ds_core.errors import ConfigError, ModelError
from ds_core.layout import Range, intersect
from ds_core.masters import MasterPiece, flat_pieces, parameter_pieces
from ds_core.optim import create, is_elementwise
from ds_core.optim.flat import FlatUpdate, Segment, SegmentOptimizer, takes_flat
from ds_core.optim.precision import implied
from ds_core.part import Part, Update
from ds_core.parts.optimizer_load import check_optimizer, load_optimizer, refine
from ds_core.parts.optimizer_state import plan_optimizer
from ds_core.placeholder import is_same_memory, placeholder
from ds_core.placement import Placement
from ds_core.state import StatePlan, StateReader

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.flat import FlatGroup
    from ds_core.space import UpdateSpace

__all__ = ["OptimizerStep"]


class OptimizerStep(Part):
    """Builds the optimizer over master pieces, and steps it."""

    name = "optimizer"
    after = ("gradient_norm",)
    state_kind = "optimizer"

    def __init__(self) -> None:
        self.optimizer: torch.optim.Optimizer | None = None
        self.pieces: list[MasterPiece] = []
        self.steps: dict[int, list[int]] = {}
        self.placement: Placement = Placement()
        self._places: dict[int, int] = {}
        """Index of each piece among those of its optimizer group, by its id."""
        self._first: dict[int, int] = {}
        """Elements of the model that lie before a flat group, by its id."""
        self._flat = False
        self._by_segment = False
        """The optimizer must be told which elements of a run belong to which parameter."""
        self._rounding_seed: int | None = None
        self._space: UpdateSpace | None = None
        self._elsewhere: Collection[str] = ()

    def prepare(self, build: Build) -> None:
        """Makes or adopts the optimizer.

        Raises:
            ConfigError: the optimizer cannot be sharded or rounded as the config asks.
            ModelError: a caller's optimizer holds foreign parameters or needs a closure.
        """
        space = build.space
        if space is None or (build.optimizer is None and build.config["optimizer"].type is None):
            return
        self._space, self._elsewhere = space, build.elsewhere
        self.placement = placement = build.placement
        groups = build.optimizer_groups
        # Made over the model's own parameters first: this validates names and hyperparameters before memory is spent.
        optimizer, elementwise = self._make(build, groups)
        self._by_segment = isinstance(optimizer, SegmentOptimizer) and build.optimizer is None
        is_known = elementwise or self._by_segment
        if space.is_sharded and not is_known and not build.config.training.zero_allow_untested_optimizer:
            raise ConfigError(
                f"optimizer {type(optimizer).__name__} is not known to update each element by itself, which sharding "
                "relies on; set zero_allow_untested_optimizer to true if it does, or use zero_optimization.stage 0"
            )
        self._flat = takes_flat(optimizer) and build.optimizer is None
        placement.check(optimizer, is_flat=self._flat, is_elementwise=elementwise)
        make = flat_pieces if self._flat else parameter_pieces
        self.pieces = make(space, build.master_dtype, placement)
        self.steps = {id(flat): [0] * len(flat.parameters) for flat in space.flats}
        sizes = itertools.accumulate((flat.layout.numel for flat in space.flats), initial=0)
        self._first = {id(flat): first for flat, first in zip(space.flats, sizes, strict=False)}
        counters: dict[int, itertools.count[int]] = {}
        self._places = {id(p): next(counters.setdefault(p.flat.group_index, itertools.count())) for p in self.pieces}
        if build.optimizer is None and optimizer.state:  # it made states for what it was made over: make it anew
            masters = [[p.master for p in self.pieces if p.flat.group_index == i] for i in range(len(groups))]
            optimizer, _ = self._make(build, [{**g, "params": m} for g, m in zip(groups, masters, strict=True)])
        else:
            _replace(optimizer, self.pieces)
        placement.adopt(optimizer, self.pieces, space)
        self.optimizer = build.optimizer = optimizer
        space.followers.append(self._follow)
        bf16 = build.config["bf16"]
        if bf16.enabled and bf16.stochastic_rounding:
            if not self._flat:
                raise ConfigError(
                    f"bf16.stochastic_rounding needs an optimizer made of the op table (AdamW on an accelerator wheel "
                    f"that brings it), not {type(optimizer).__name__}; set it to false or install the wheel"
                )
            self._rounding_seed = build.config.training.seed or 0

    def _make(self, build: Build, groups: list[dict[str, Any]]) -> tuple[torch.optim.Optimizer, bool]:
        if build.optimizer is None:
            name = build.config["optimizer"].type
            params, defaults = implied(build.config, build.master_dtype)
            device_type = build.placement.device_type or build.accelerator.device_type
            if device_type != build.device.type:
                groups = _stand_ins(groups, torch.device(device_type))
            optimizer, entry = create(name, groups, params, device_type, defaults=defaults)
            return optimizer, entry.elementwise
        given = build.optimizer
        closure = inspect.signature(given.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ModelError(f"optimizer {type(given).__name__} needs a closure in step(); the engine cannot drive it")
        return given, bool(is_elementwise(given))

    def update(self, update: Update) -> None:
        """Steps the optimizer; parameters without a gradient on any rank are left alone, as torch leaves them."""
        if self.optimizer is None:
            return
        rows = update.used if update.used is not None else [[True] * len(steps) for steps in self.steps.values()]
        used = dict(zip(self.steps, rows, strict=True))
        for key, row in used.items():
            self.steps[key] = [n + u for n, u in zip(self.steps[key], row, strict=True)]
        step = self._step_flat if self._flat else self._step_pieces
        self.placement.visit(self.pieces, lambda pieces: step(update, used, pieces))

    def _step_flat(self, update: Update, used: Mapping[int, Sequence[bool]], pieces: Sequence[MasterPiece]) -> None:
        """What the device updates is started first, for it may go on by itself meanwhile."""
        near = [piece for piece in pieces if piece.is_near]
        for group in ([near] if near or self._by_segment else []) + [[piece] for piece in pieces if not piece.is_near]:
            self._step_group(update, used, group)

    def _step_group(self, update: Update, used: Mapping[int, Sequence[bool]], pieces: Sequence[MasterPiece]) -> None:
        """Pieces of one device; a piece whose working values are elsewhere comes alone."""
        assert self._space is not None
        device = pieces[0].master.device if pieces else self._space.flats[0].device
        updates: list[FlatUpdate] = []
        segments: list[list[Segment]] = []
        results: list[tuple[FlatGroup, Range, torch.Tensor]] = []
        for piece in pieces:
            key, flat, base = id(piece.flat), piece.flat, piece.span.start
            out = self._copy_out(piece)
            for run in piece.runs(self.steps[key], used[key]):
                span, part = Range(run.start, run.stop), slice(run.start - base, run.stop - base)
                values = piece.master.data[part]
                updates.append(
                    FlatUpdate(
                        param=values,
                        grad=flat.grads(span).to(device),
                        copy_out=None if out is None else out[part],
                        state_offset=run.start - base,
                        group=flat.group_index,
                        param_index=self._places[id(piece)],
                        step=run.step,
                        position=self._first[key] + run.start,
                    )
                )
                segments.append(self._segments(piece, span) if self._by_segment else [])
                if not piece.is_near:
                    results.append((flat, span, values if out is None else out[part]))
        factor = None
        if update.grad_factor != 1.0:
            factor = torch.tensor(update.grad_factor, dtype=torch.float32, device=device)
        seed = -1 if self._rounding_seed is None else (self._rounding_seed * 1_000_003 + update.step) & (2**31 - 1)
        optimizer: Any = self.optimizer
        if self._by_segment:
            optimizer.step_segments(
                updates,
                segments,
                parameters=sum(len(flat.parameters) for flat in self._space.flats),
                total=self._space.sum_table_over_ranks if self._space.is_sharded else _itself,
                grad_factor=factor,
                rounding_seed=seed,
            )
        else:
            optimizer.step_flat(updates, grad_factor=factor, rounding_seed=seed)
        for flat, span, values in results:
            flat.store(span, values)

    def _segments(self, piece: MasterPiece, run: Range) -> list[Segment]:
        """What of a run belongs to which parameter, numbered through all flat groups."""
        assert self._space is not None
        first = 0
        for flat in self._space.flats:
            if flat is piece.flat:
                break
            first += len(flat.parameters)
        cuts = ((index, intersect(run, part.start, part.stop)) for index, _, part in piece.fragments())
        return [
            Segment(cut.start - run.start, cut.stop - run.start, first + index)
            for index, cut in cuts
            if cut is not None
        ]

    def _copy_out(self, piece: MasterPiece) -> torch.Tensor | None:
        """Where the update of a piece rounds its working values to: themselves, or memory beside the master."""
        if not piece.separate or (not piece.is_near and not piece.is_finer):
            return None
        if piece.is_near:
            return piece.working
        return self.placement.staging(piece.span.numel, piece.flat.dtype, piece.master.device)

    def _step_pieces(self, update: Update, used: Mapping[int, Sequence[bool]], pieces: Sequence[MasterPiece]) -> None:
        assert self.optimizer is not None
        assert self._space is not None
        scaled = set()
        if update.grad_factor != 1.0:
            # One multiplication over each owned range rather than one for each parameter.
            for flat in {id(p.flat): p.flat for p in pieces if p.master.dtype == p.flat.grad_dtype}.values():
                scaled.add(id(flat))
                for part in self._space.owned(flat):
                    flat.grads(part).mul_(update.grad_factor)
        for piece in pieces:
            assert piece.slot_index is not None
            if not used[id(piece.flat)][piece.slot_index]:
                piece.master.grad = None
                continue
            gradient = piece.flat.grads(piece.span).view(piece.master.shape)
            gradient = gradient.to(device=piece.master.device, dtype=piece.master.dtype)
            if update.grad_factor != 1.0 and id(piece.flat) not in scaled:
                gradient.mul_(update.grad_factor)
            if piece.master.grad is None or not is_same_memory(piece.master.grad, gradient):
                piece.master.grad = gradient
        self.optimizer.step()
        for piece in pieces:
            if piece.separate:
                piece.flat.store(piece.span, piece.master.detach().view(-1))
                piece.master.grad = None

    def zero_grad(self) -> None:
        """Drops the gradients of master copies."""
        for piece in self.pieces:
            piece.master.grad = None

    def state_plan(self) -> StatePlan | None:
        """Master weights and optimizer states by parameter name, hyperparameters and step counts as values."""
        if self.optimizer is None or self._space is None:
            return None
        return plan_optimizer(self.optimizer, self.pieces, self.steps, self._space, self.placement)

    def optimizer_names(self) -> list[list[str]]:
        """Names of the parameters of each group, in its order."""
        if self.optimizer is None or self._space is None:
            return []
        names: list[list[str]] = [[] for _ in self.optimizer.param_groups]
        for flat in self._space.flats:
            names[flat.group_index] += [slot.name for slot in flat.layout.slots]
        return names

    def check_state(self, reader: StateReader) -> None:
        """Refuses the state of another optimizer or of other parameters."""
        if self.optimizer is not None and self._space is not None:
            check_optimizer(self.optimizer, self._space, reader, self._elsewhere)

    def load_state(self, reader: StateReader) -> None:
        """Takes states back by parameter name."""
        if self.optimizer is not None:
            load_optimizer(self.optimizer, self.pieces, self.steps, reader, self.placement)

    def _follow(self, flat: FlatGroup, span: Range, before: torch.Tensor) -> None:
        """Masters take working values that were replaced by hand, and keep their precision where nothing changed."""
        met = [
            piece
            for piece in self.pieces
            if piece.flat is flat and piece.separate and intersect(span, piece.span.start, piece.span.stop)
        ]

        def follow(pieces: Sequence[MasterPiece]) -> None:
            for piece in pieces:
                part = intersect(span, piece.span.start, piece.span.stop)
                assert part is not None
                master = piece.master.data.view(-1)[part.start - piece.span.start : part.stop - piece.span.start]
                now = flat.working(part)
                changed = now != before[part.start - span.start : part.stop - span.start].to(now.device)
                master[changed.to(master.device)] = now[changed].to(device=master.device, dtype=master.dtype)

        if met:
            self.placement.visit(met, follow)

    def weights_replaced(self, reader: StateReader | None = None) -> None:
        """Masters follow the weights that were loaded, and are as fine as the checkpoint where it rounds to them."""

        def follow(pieces: Sequence[MasterPiece]) -> None:
            for piece in pieces:
                piece.master.data.view(-1).copy_(piece.working)
                if reader is not None and piece.is_finer:
                    refine(piece, reader)

        self.placement.visit([piece for piece in self.pieces if piece.separate], follow)

    def close(self) -> None:
        """Gives back what the placement holds."""
        self.placement.close()


def _itself(table: torch.Tensor) -> torch.Tensor:
    """What this rank has of the parameters is all there is."""
    return table


def _stand_ins(groups: list[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """`groups` with parameters of the same shapes and no memory, on the device where their masters will be."""
    return [
        {**g, "params": [torch.nn.Parameter(placeholder(p.shape, p.dtype, device)) for p in g["params"]]}
        for g in groups
    ]


def _replace(optimizer: torch.optim.Optimizer, pieces: list[MasterPiece]) -> None:
    """Puts the masters in the place of the model's parameters, group by group, keeping hyperparameters."""
    own = {id(piece.master) for piece in pieces}
    for parameter in list(optimizer.state):
        if id(parameter) not in own and optimizer.state[parameter]:
            raise ModelError(
                "the optimizer already has state for parameters that are now sharded or kept in another precision; "
                "pass a fresh optimizer and load its state through engine.load_checkpoint"
            )
    # An optimizer may have split the groups it was given (Muon does, by shape): a master goes where its parameter was.
    homes = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}

    def home(piece: MasterPiece) -> int:
        first = piece.fragments()[0][0] if piece.fragments() else 0
        return homes.get(id(piece.flat.parameters[first]), piece.flat.group_index)

    for index, group in enumerate(optimizer.param_groups):
        group["params"] = [piece.master for piece in pieces if home(piece) == index]
