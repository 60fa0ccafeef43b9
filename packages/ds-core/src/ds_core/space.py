"""The update space: flat buffers of parameters and gradients, and which of their elements this rank updates.

Glossary of tensors, all 1-D over one `FlatGroup`
    working    the values the module computes with; every parameter is a view of it
    grads      accumulated gradients of the micro-batches; every ``parameter.grad`` is a view of it
    master     what the optimizer updates: `working` itself, or a higher-precision copy of the owned ranges

A space answers three questions: which ranges of the buffers does this rank own, how do gradients of all ranks come
together there, how do updated parameters get back to every rank. `ReplicatedSpace` owns everything (stage 0);
sharded spaces come from wheels through ``Build.space``.

Note [First gradient is copied, later ones accumulate in place]
    Autograd hands the first gradient of a step over as a fresh tensor. The hook copies it into the flat view and makes
    the view ``parameter.grad``; autograd then adds every later gradient into the view by itself. Nothing is zeroed in
    advance, and a parameter whose gradient is not its view had none in this step.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from ds_core import comm
from ds_core.errors import ModelError
from ds_core.layout import FlatLayout, Range, plan_layout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.utils.hooks import RemovableHandle

__all__ = ["FlatGroup", "NamedParameter", "ReplicatedSpace", "SpacePolicy", "UpdateSpace"]


class NamedParameter(NamedTuple):
    """A trainable parameter, its name in the module, its optimizer group, and the dtype its gradient is reduced in."""

    name: str
    parameter: torch.nn.Parameter
    group_index: int
    reduce_dtype: torch.dtype | None = None


class SpacePolicy(NamedTuple):
    """How gradients are stored and come together.

    Attributes:
        bucket_numel: elements per collective.
        grad_dtype: dtype gradients accumulate in; None keeps the parameter's.
        mean: average over ranks (else sum).
        prescale: divide by the number of ranks before the reduction rather than after it.
        predivide: divide by this before the reduction, and by the rest after it.
    """

    bucket_numel: int = 500_000_000
    grad_dtype: torch.dtype | None = None
    mean: bool = True
    prescale: bool = False
    predivide: float = 1.0


class FlatGroup:
    """Parameters of one optimizer group and dtype, laid out in one flat buffer."""

    def __init__(
        self, members: Sequence[NamedParameter], layout: FlatLayout, *, grad_dtype: torch.dtype | None
    ) -> None:
        first = members[0].parameter
        self.group_index: int = members[0].group_index
        self.reduce_dtype: torch.dtype | None = members[0].reduce_dtype
        self.layout: FlatLayout = layout
        self.parameters: list[torch.nn.Parameter] = [member.parameter for member in members]
        self.working: torch.Tensor = torch.empty(layout.numel, dtype=first.dtype, device=first.device)
        self.grad_dtype: torch.dtype = grad_dtype or first.dtype
        self._grads: torch.Tensor | None = None
        self._views: list[torch.Tensor] = []
        self._hooks: list[RemovableHandle] = []
        self._adopt()

    def _adopt(self) -> None:
        """Moves every parameter's values into the flat buffer, one at a time, and makes the parameter a view of it."""
        end = 0
        with torch.no_grad():
            for slot, parameter in zip(self.layout.slots, self.parameters, strict=True):
                self.working[end : slot.start].zero_()
                view = self.working[slot.start : slot.stop].view(slot.shape)
                view.copy_(parameter.data)
                parameter.data = view
                end = slot.stop
            self.working[end:].zero_()
        for index, parameter in enumerate(self.parameters):
            parameter.grad = None
            if self.grad_dtype != parameter.dtype:
                parameter.grad_dtype = self.grad_dtype
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._make_hook(index)))

    def _make_hook(self, index: int):  # type: ignore[no-untyped-def]
        def store(parameter: torch.Tensor) -> None:
            # See Note [First gradient is copied, later ones accumulate in place].
            if not self._views:
                self._allocate_grads()
            view = self._views[index]
            gradient = parameter.grad
            if gradient is view or gradient is None:
                return
            view.copy_(gradient.to_dense() if gradient.is_sparse else gradient)
            parameter.grad = view

        return store

    def _allocate_grads(self) -> None:
        self._grads = torch.empty(self.layout.numel, dtype=self.grad_dtype, device=self.working.device)
        end = 0
        for slot in self.layout.slots:
            self._grads[end : slot.start].zero_()
            end = slot.stop
        self._grads[end:].zero_()
        self._views = [self._grads[slot.start : slot.stop].view(slot.shape) for slot in self.layout.slots]

    @property
    def grads(self) -> torch.Tensor:
        """The flat gradient buffer, allocated at its first use; padding is zero."""
        if self._grads is None:
            self._allocate_grads()
            assert self._grads is not None
        return self._grads

    def has_gradient(self) -> list[bool]:
        """For each parameter, whether it received a gradient on this rank in this step."""
        if not self._views:
            return [False] * len(self.parameters)
        return [p.grad is view for p, view in zip(self.parameters, self._views, strict=True)]

    def clear_unused(self, used: Sequence[bool]) -> None:
        """Zeroes the gradient of every parameter that received none, so that the buffer may be reduced."""
        grads = self.grads
        for slot, is_used in zip(self.layout.slots, used, strict=True):
            if not is_used:
                grads[slot.start : slot.stop].zero_()

    def zero_grad(self) -> None:
        """Forgets gradients; the buffer stays."""
        for parameter in self.parameters:
            parameter.grad = None

    def close(self) -> None:
        """Removes hooks and frees the gradient buffer; parameters keep their values."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.zero_grad()
        self._grads, self._views = None, []


class UpdateSpace(abc.ABC):
    """Flat groups over a data-parallel process group. Subclasses say which ranges this rank owns."""

    def __init__(
        self,
        parameters: Sequence[NamedParameter],
        *,
        policy: SpacePolicy,
        group: ProcessGroup | None,
        rank: int,
        ranks: int,
    ) -> None:
        self.policy: SpacePolicy = policy
        self.group: ProcessGroup | None = group
        self.rank: int = rank
        self.ranks: int = ranks
        self.flats: list[FlatGroup] = _flatten(parameters, policy, ranks)

    @abc.abstractmethod
    def owned(self, flat: FlatGroup) -> tuple[Range, ...]:
        """Ranges this rank's optimizer updates."""

    @property
    def is_sharded(self) -> bool:
        """True when some elements are updated by other ranks only."""
        return any(self.owned(flat) != flat.layout.whole() for flat in self.flats)

    def measured(self, flat: FlatGroup) -> tuple[Range, ...]:
        """Ranges whose gradient norm this rank adds up; over all ranks they cover everything once."""
        return flat.layout.shard_ranges(self.rank)

    def reduce(self) -> float:
        """Brings the gradients of all ranks together, at least on the owned ranges.

        Returns:
            The factor a reduced element must still be multiplied by to be the mean (or sum) over ranks.
        """
        policy = self.policy
        before, factor = 1.0 / policy.predivide, policy.predivide
        if policy.mean and policy.prescale:
            before, factor = 1.0 / self.ranks, 1.0
        elif policy.mean:
            factor = policy.predivide / self.ranks
        for flat in self.flats:
            flat.clear_unused(flat.has_gradient())
            if before != 1.0:
                flat.grads.mul_(before)
            if self.ranks > 1:
                self._reduce_flat(flat)
        return factor

    def _reduce_flat(self, flat: FlatGroup) -> None:
        with comm.scope("gradients"):
            for index, bucket in enumerate(flat.layout.buckets):
                piece = flat.grads[bucket.start : bucket.stop]
                wanted = flat.reduce_dtype or piece.dtype
                if wanted == piece.dtype:
                    self.reduce_bucket(flat, index, piece)
                else:
                    narrow = piece.to(wanted)
                    self.reduce_bucket(flat, index, narrow)
                    piece.copy_(narrow)

    @abc.abstractmethod
    def reduce_bucket(self, flat: FlatGroup, index: int, piece: torch.Tensor) -> None:
        """Sums `piece`, the gradients of bucket `index`, over ranks, in place, at least on this rank's ranges."""

    @abc.abstractmethod
    def publish(self) -> None:
        """Makes every rank's working parameters equal to what their owners computed."""

    def broadcast_parameters(self) -> None:
        """Makes every rank start from the first rank's values."""
        if self.ranks > 1:
            with comm.scope("initial parameters"):
                for flat in self.flats:
                    comm.broadcast(flat.working, src=comm.get_global_rank(self.group, 0), group=self.group)

    def sum_over_ranks(self, value: float, flags: Sequence[Sequence[bool]]) -> tuple[float, list[list[bool]]]:
        """Adds one number of every rank, in rank order, and tells which flags any rank set.

        One all-gather of eight bytes and a byte a flag, so that every rank has bit-equal results.
        """
        if self.ranks == 1:
            return value, [list(row) for row in flags]
        lengths = [len(row) for row in flags]
        mine = torch.tensor([flag for row in flags for flag in row], dtype=torch.uint8)
        number = torch.tensor([value], dtype=torch.float64).view(torch.uint8)
        payload = torch.cat([number, mine]).to(self.flats[0].working.device)
        everyone = torch.empty(self.ranks * payload.numel(), dtype=torch.uint8, device=payload.device)
        with comm.scope("gradient norm"):
            comm.all_gather_into_tensor(everyone, payload, group=self.group)
        table = everyone.cpu().view(self.ranks, -1)
        total = 0.0
        for number_bytes in table[:, :8]:
            total += float(number_bytes.clone().view(torch.float64).item())
        any_set = table[:, 8:].amax(dim=0).bool().tolist() if mine.numel() else []
        rows, at = [], 0
        for length in lengths:
            rows.append(any_set[at : at + length])
            at += length
        return total, rows

    def zero_grad(self) -> None:
        """Forgets accumulated gradients."""
        for flat in self.flats:
            flat.zero_grad()

    def close(self) -> None:
        """Removes hooks and frees gradient buffers."""
        for flat in self.flats:
            flat.close()


class ReplicatedSpace(UpdateSpace):
    """Every rank owns everything: gradients are all-reduced, every rank makes the same update."""

    def owned(self, flat: FlatGroup) -> tuple[Range, ...]:
        """All of it."""
        return flat.layout.whole()

    def reduce_bucket(self, flat: FlatGroup, index: int, piece: torch.Tensor) -> None:
        """All-reduces the bucket."""
        comm.all_reduce(piece, group=self.group)

    def publish(self) -> None:
        """Nothing to share: every rank computed everything."""


def _flatten(parameters: Iterable[NamedParameter], policy: SpacePolicy, ranks: int) -> list[FlatGroup]:
    keyed: dict[tuple[int, torch.dtype, torch.dtype | None, torch.device], list[NamedParameter]] = {}
    memory: dict[tuple[torch.device, int], str] = {}
    for member in parameters:
        parameter = member.parameter
        address = (parameter.device, parameter.data_ptr())
        if parameter.numel() and address[1] and memory.setdefault(address, member.name) != member.name:
            raise ModelError(
                f"parameters {memory[address]!r} and {member.name!r} are different Parameter objects over the same "
                "memory; tie weights by assigning one Parameter object to both places"
            )
        key = (member.group_index, parameter.dtype, member.reduce_dtype, parameter.device)
        keyed.setdefault(key, []).append(member)
    flats = []
    for members in keyed.values():
        shapes = [(member.name, tuple(member.parameter.shape)) for member in members]
        layout = plan_layout(shapes, shards=ranks, bucket_numel=policy.bucket_numel)
        flats.append(FlatGroup(members, layout, grad_dtype=policy.grad_dtype))
    return flats
