"""Gradients of one flat group: what has come in on this rank, and what ranks have added up.

Glossary, each per bucket
    incoming   local gradients that have not met other ranks' yet; ``parameter.grad`` is a view of it
    total      gradients after the reduction: of the whole bucket, or of the shard this rank owns

Note [First gradient is copied, later ones accumulate in place]
    Autograd hands the first gradient of a step over as a fresh tensor. The hook copies it into the incoming buffer and
    makes the view ``parameter.grad``; autograd then adds every later gradient into the view by itself. Nothing is
    zeroed in advance, and a parameter whose gradient is not its view had none.

Note [Buffers per bucket]
    Buffers are made when the first gradient of a bucket arrives and dropped when the step is over, so gradients take
    the memory that activations leave behind during backward, and none during forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ds_core import buffers
from ds_core.layout import Range

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from ds_core.flat import FlatGroup

__all__ = ["Gradients"]

Arrival = Callable[["FlatGroup", int, int], None]
"""Told of each gradient: the group, the bucket's index, the slot's index."""


Keep = Callable[[int, torch.Tensor], torch.Tensor]


class _Incoming:
    """The local buffer of one bucket."""

    __slots__ = ("buffer", "views")

    def __init__(self, flat: FlatGroup, index: int) -> None:
        bucket = flat.layout.buckets[index]
        self.buffer: torch.Tensor = buffers.take(bucket.numel, flat.grad_dtype, flat.device)
        self.views: list[torch.Tensor] = []
        end = bucket.start
        for slot in flat.layout.slots[bucket.first : bucket.last]:
            self.buffer[end - bucket.start : slot.start - bucket.start].zero_()
            self.views.append(self.buffer[slot.start - bucket.start : slot.stop - bucket.start].view(slot.shape))
            end = slot.stop
        self.buffer[end - bucket.start :].zero_()


class _Total:
    """The reduced gradients of a bucket, or of this rank's part of it."""

    __slots__ = ("start", "tensor")

    def __init__(self, tensor: torch.Tensor, start: int) -> None:
        self.tensor = tensor
        self.start = start


class Gradients:
    """Collects gradients of a trainable flat group through hooks on its parameters.

    Attributes:
        used: for each parameter, whether it received a gradient on this rank since `zero_grad`; complete once every
            bucket was taken.
        keep: given the index of a bucket and its reduced gradients on the device, gives them where they are to be kept.
        on_arrival: called after each gradient is stored.
    """

    def __init__(self, flat: FlatGroup) -> None:
        self._flat = flat
        count = len(flat.layout.buckets)
        self._incoming: list[_Incoming | None] = [None] * count
        self._totals: list[_Total | None] = [None] * count
        self.used: list[bool] = [False] * len(flat.parameters)
        self.keep: Keep | None = None
        self.on_arrival: Arrival | None = None
        self._hooks: list[RemovableHandle] = []
        for index, bucket in enumerate(flat.layout.buckets):
            for slot in range(bucket.first, bucket.last):
                parameter = flat.parameters[slot]
                parameter.grad = None
                if flat.grad_dtype != parameter.dtype:
                    parameter.grad_dtype = flat.grad_dtype
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._make_hook(index, slot)))

    def _make_hook(self, index: int, slot: int) -> Callable[[torch.Tensor], None]:
        place = slot - self._flat.layout.buckets[index].first

        def store(parameter: torch.Tensor) -> None:
            # See Note [First gradient is copied, later ones accumulate in place].
            gradient = parameter.grad
            if gradient is None:
                return
            incoming = self._incoming[index]
            if incoming is None:
                incoming = self._incoming[index] = _Incoming(self._flat, index)
            view = incoming.views[place]
            if gradient is not view:
                view.copy_(gradient.to_dense() if gradient.is_sparse else gradient)
                parameter.grad = view
            if self.on_arrival is not None:
                self.on_arrival(self._flat, index, slot)

        return store

    def has_incoming(self, index: int) -> bool:
        """Whether bucket `index` holds local gradients that were not taken."""
        return self._incoming[index] is not None

    def take(self, index: int) -> torch.Tensor:
        """The local gradients of bucket `index`, 1-D, zero where a parameter had none; they are the caller's now."""
        bucket = self._flat.layout.buckets[index]
        incoming, self._incoming[index] = self._incoming[index], None
        if incoming is None:
            return torch.zeros(bucket.numel, dtype=self._flat.grad_dtype, device=self._flat.device)
        for place, view in enumerate(incoming.views):
            parameter = self._flat.parameters[bucket.first + place]
            if parameter.grad is view:
                self.used[bucket.first + place] = True
                parameter.grad = None
            else:
                view.zero_()
        return incoming.buffer

    def put(self, index: int, reduced: torch.Tensor, start: int) -> None:
        """Adds reduced gradients of bucket `index` that begin at element `start`; the first become the total."""
        if self.keep is not None:
            reduced = self.keep(index, reduced)
        total = self._totals[index]
        if total is not None:
            total.tensor.add_(reduced)
            return
        self._totals[index] = _Total(reduced, start)
        bucket = self._flat.layout.buckets[index]
        if reduced.numel() == bucket.numel and reduced.device == self._flat.device:
            self._show(index, reduced)

    def _show(self, index: int, whole: torch.Tensor) -> None:
        """Makes ``parameter.grad`` the reduced gradient where this rank holds all of it."""
        bucket = self._flat.layout.buckets[index]
        for place in range(bucket.first, bucket.last):
            if self.used[place]:
                slot = self._flat.layout.slots[place]
                view = whole[slot.start - bucket.start : slot.stop - bucket.start].view(slot.shape)
                self._flat.parameters[place].grad = view

    def hide(self) -> None:
        """Takes reduced gradients off the parameters, so that a further backward does not add into them."""
        for index, total in enumerate(self._totals):
            if total is not None:
                bucket = self._flat.layout.buckets[index]
                for parameter in self._flat.parameters[bucket.first : bucket.last]:
                    if self._incoming[index] is None:
                        parameter.grad = None

    def of(self, span: Range) -> torch.Tensor:
        """Reduced gradients of `span`, 1-D, to read and write; `span` is in one bucket and owned by this rank."""
        index = self._flat.layout.bucket_at(span.start)
        total = self._totals[index]
        if total is None:
            raise AssertionError(f"gradients of bucket {index} were asked for before they were reduced")
        return total.tensor[span.start - total.start : span.stop - total.start]

    def local(self, slot: int) -> torch.Tensor | None:
        """This rank's gradient of one parameter as far as it has not met other ranks', or None."""
        index = self._flat.layout.bucket_at(self._flat.layout.slots[slot].start)
        incoming = self._incoming[index]
        if incoming is None:
            return None
        view = incoming.views[slot - self._flat.layout.buckets[index].first]
        return view if self._flat.parameters[slot].grad is view else None

    def local_tensors(self) -> list[torch.Tensor]:
        """Buffers of gradients that have not met other ranks', and every view of them."""
        return [tensor for incoming in self._incoming if incoming for tensor in (incoming.buffer, *incoming.views)]

    def reduced_tensors(self) -> list[torch.Tensor]:
        """Buffers of reduced gradients, and every view of them."""
        totals = [total.tensor for total in self._totals if total is not None]
        storages = {total.untyped_storage()._cdata for total in totals}
        shown = (parameter.grad for parameter in self._flat.parameters)
        return totals + [grad for grad in shown if grad is not None and grad.untyped_storage()._cdata in storages]

    def is_reduced(self, index: int) -> bool:
        """Whether bucket `index` has a total."""
        return self._totals[index] is not None

    def zero_grad(self) -> None:
        """Forgets gradients and gives their memory back."""
        for parameter in self._flat.parameters:
            parameter.grad = None
        self._incoming = [None] * len(self._incoming)
        for total in self._totals:
            if total is not None:
                buffers.give(total.tensor)
        self._totals = [None] * len(self._totals)
        self.used = [False] * len(self.used)

    def close(self) -> None:
        """Removes hooks and frees buffers."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.on_arrival = None
        self.zero_grad()
        buffers.clear()
