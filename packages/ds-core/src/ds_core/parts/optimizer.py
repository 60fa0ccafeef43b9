"""Optimizer step: applies reduced gradients to the master pieces and rounds them back into the working weights."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ds_core.errors import ConfigError, ModelError
from ds_core.layout import Range, intersect
from ds_core.masters import MasterPiece, flat_pieces, parameter_pieces
from ds_core.optim import create, is_elementwise
from ds_core.optim.flat import FlatUpdate, supports_flat
from ds_core.part import Part, Update
from ds_core.parts.optimizer_state import load_optimizer, plan_optimizer
from ds_core.state import StatePlan, StateReader

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.flat import FlatGroup
    from ds_core.space import UpdateSpace

__all__ = ["OptimizerStep"]

ADAM_NAMES = ("adam", "adamw")
"""Optimizers that can keep states in another dtype than the parameters they update."""


class OptimizerStep(Part):
    """Builds the optimizer over master pieces, and steps it."""

    name = "optimizer"
    after = ("gradient_norm",)
    state_kind = "optimizer"

    def __init__(self) -> None:
        self.optimizer: torch.optim.Optimizer | None = None
        self.pieces: list[MasterPiece] = []
        self.steps: dict[int, list[int]] = {}
        self._first: dict[int, int] = {}
        """Elements of the model that lie before a flat group, by its id."""
        self._flat = False
        self._rounding_seed: int | None = None
        self._space: UpdateSpace | None = None

    def prepare(self, build: Build) -> None:
        """Makes or adopts the optimizer.

        Raises:
            ConfigError: the optimizer cannot be sharded or rounded as the config asks.
            ModelError: a caller's optimizer holds foreign parameters or needs a closure.
        """
        space = build.space
        if space is None or (build.optimizer is None and build.config["optimizer"].type is None):
            return
        self._space = space
        groups = build.optimizer_groups
        # Made over the model's own parameters first: this validates names and hyperparameters before memory is spent.
        optimizer, elementwise = self._make(build, groups)
        if space.is_sharded and not elementwise and not build.config.training.zero_allow_untested_optimizer:
            raise ConfigError(
                f"optimizer {type(optimizer).__name__} is not known to update each element by itself, which sharding "
                "relies on; set zero_allow_untested_optimizer to true if it does, or use zero_optimization.stage 0"
            )
        self._flat = supports_flat(optimizer) and build.optimizer is None
        make = flat_pieces if self._flat else parameter_pieces
        self.pieces = make(space, build.master_dtype)
        self.steps = {id(flat): [0] * len(flat.parameters) for flat in space.flats}
        sizes = itertools.accumulate((flat.layout.numel for flat in space.flats), initial=0)
        self._first = {id(flat): first for flat, first in zip(space.flats, sizes, strict=False)}
        _replace(optimizer, self.pieces)
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
            section = build.config["optimizer"]
            params = dict(section.params)
            is_low = build.config["bf16"].enabled or build.config["fp16"].enabled
            if is_low and build.master_dtype is None and section.type.lower() in ADAM_NAMES:
                params.setdefault("fp32_optimizer_states", not build.config["bf16"].bf16_optimizer_states)
            optimizer, entry = create(section.type, groups, params, device_type=build.accelerator.device_type)
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
        if self._flat:
            self._step_flat(update, used)
        else:
            self._step_pieces(update, used)

    def _step_flat(self, update: Update, used: Mapping[int, Sequence[bool]]) -> None:
        updates: list[FlatUpdate] = []
        counters: dict[int, itertools.count[int]] = {}
        for piece in self.pieces:
            index = next(counters.setdefault(piece.flat.group_index, itertools.count()))
            key, flat, base = id(piece.flat), piece.flat, piece.span.start
            for run in piece.runs(self.steps[key], used[key]):
                updates.append(
                    FlatUpdate(
                        param=piece.master.data[run.start - base : run.stop - base],
                        grad=flat.grads(Range(run.start, run.stop)),
                        copy_out=flat.working(Range(run.start, run.stop)) if piece.separate else None,
                        state_offset=run.start - base,
                        group=flat.group_index,
                        param_index=index,
                        step=run.step,
                        position=self._first[key] + run.start,
                    )
                )
        factor = None if update.grad_factor == 1.0 else torch.tensor(update.grad_factor, dtype=torch.float32)
        seed = -1 if self._rounding_seed is None else (self._rounding_seed * 1_000_003 + update.step) & (2**31 - 1)
        self.optimizer.step_flat(updates, grad_factor=factor, rounding_seed=seed)  # type: ignore[union-attr]

    def _step_pieces(self, update: Update, used: Mapping[int, Sequence[bool]]) -> None:
        assert self.optimizer is not None
        assert self._space is not None
        scaled = set()
        if update.grad_factor != 1.0:
            # One multiplication over each owned range rather than one for each parameter.
            for flat in {id(p.flat): p.flat for p in self.pieces if p.master.dtype == p.flat.grad_dtype}.values():
                scaled.add(id(flat))
                for part in self._space.owned(flat):
                    flat.grads(part).mul_(update.grad_factor)
        for piece in self.pieces:
            assert piece.slot_index is not None
            if not used[id(piece.flat)][piece.slot_index]:
                piece.master.grad = None
                continue
            gradient = piece.flat.grads(piece.span).view(piece.master.shape)
            if gradient.dtype != piece.master.dtype:
                gradient = gradient.to(piece.master.dtype)
            if update.grad_factor != 1.0 and id(piece.flat) not in scaled:
                gradient.mul_(update.grad_factor)
            if piece.master.grad is None or piece.master.grad.data_ptr() != gradient.data_ptr():
                piece.master.grad = gradient
        self.optimizer.step()
        for piece in self.pieces:
            if piece.separate:
                piece.working.copy_(piece.master.detach().view(-1))
                piece.master.grad = None

    def zero_grad(self) -> None:
        """Drops the gradients of master copies."""
        for piece in self.pieces:
            piece.master.grad = None

    def state_plan(self) -> StatePlan | None:
        """Master weights and optimizer states by parameter name, hyperparameters and step counts as values."""
        if self.optimizer is None or self._space is None:
            return None
        return plan_optimizer(self.optimizer, self.pieces, self.steps, self._space)

    def load_state(self, reader: StateReader) -> None:
        """Takes states back by parameter name."""
        if self.optimizer is not None:
            load_optimizer(self.optimizer, self.pieces, self.steps, reader)

    def _follow(self, flat: FlatGroup, span: Range, before: torch.Tensor) -> None:
        """Masters take working values that were replaced by hand, and keep their precision where nothing changed."""
        for piece in self.pieces:
            part = intersect(span, piece.span.start, piece.span.stop) if piece.flat is flat and piece.separate else None
            if part is None:
                continue
            master = piece.master.data.view(-1)[part.start - piece.span.start : part.stop - piece.span.start]
            now = flat.working(part)
            changed = now != before[part.start - span.start : part.stop - span.start]
            master[changed] = now[changed].to(master.dtype)

    def weights_replaced(self) -> None:
        """Masters follow the weights that were loaded."""
        for piece in self.pieces:
            if piece.separate:
                piece.master.data.view(-1).copy_(piece.working)


def _replace(optimizer: torch.optim.Optimizer, pieces: list[MasterPiece]) -> None:
    """Puts the masters in the place of the model's parameters, group by group, keeping hyperparameters."""
    own = {id(piece.master) for piece in pieces}
    for parameter in list(optimizer.state):
        if id(parameter) not in own and optimizer.state[parameter]:
            raise ModelError(
                "the optimizer already has state for parameters that are now sharded or kept in another precision; "
                "pass a fresh optimizer and load its state through engine.load_checkpoint"
            )
    for index, group in enumerate(optimizer.param_groups):
        group["params"] = [piece.master for piece in pieces if piece.flat.group_index == index]
