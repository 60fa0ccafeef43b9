"""Messages between the ranks of a pipeline: sent without waiting, received ahead of need, in the order of the sender.

Note [Order]
    Between two ranks messages go in the order in which the sender makes them, which the receiver computes from the
    schedule. So a receive can be posted before the message is needed, and needs no tag.

Note [Shapes]
    The first activation between two stages is preceded by its layout: its length, then the text. Later ones are of
    the same layout, unless shapes are dynamic; then each is preceded. A gradient has the layout of what it belongs to.

Note [When a send is over]
    gloo does not say that a send is complete; it can only be waited for. A message of another rank tells which of ours
    it must have taken before, by its row of the schedule: those are waited for, which takes no time, and let go of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ds_core import comm
from ds_pipeline.errors import PipelineError
from ds_pipeline.runtime.shapes import Layout, decode, describe, encode
from ds_pipeline.schedules import Message, Op, Schedule, messages

__all__ = ["LostError", "Route", "Transport"]

AHEAD = 2
"""Messages of one rank that are received before they are needed; each takes memory."""

IN_FLIGHT = 4
"""Messages to one rank that are under way at most, where nothing that comes back says which have arrived."""


class LostError(Exception):
    """A message did not come, or could not be sent."""

    def __init__(self, peer: int, what: str, cause: str) -> None:
        super().__init__(cause)
        self.peer: int = peer
        self.what: str = what
        self.cause: str = cause


class Route(NamedTuple):
    """Between whom messages go.

    Attributes:
        rank: this rank's place along the pipe axis.
        world_ranks: of every pipe rank.
        down: the group for messages to higher pipe ranks.
        up: the group for messages to lower ones; another where a group serves one direction at a time.
        device: where messages are made and taken.
    """

    rank: int
    world_ranks: Sequence[int]
    down: Any
    up: Any
    device: torch.device

    def group(self, source: int, target: int) -> Any:
        """The group of messages from one pipe rank to another."""
        return self.down if source < target else self.up


class _Receipt:
    """A message that is being received: its layout's length first, when its layout is not known."""

    __slots__ = ("handles", "layout", "length", "message", "tensors")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.layout: Layout | None = None
        self.length: torch.Tensor | None = None
        self.tensors: list[torch.Tensor] = []
        self.handles: list[Any] = []


class _Sent(NamedTuple):
    """A message under way, and the place in the receiver's row at which it has taken it."""

    taken_at: int
    handles: list[Any]
    tensors: list[torch.Tensor]


class Transport:
    """The messages of one rank.

    Args:
        route: between whom.
        dynamic: every activation is preceded by its layout.
    """

    def __init__(self, route: Route, *, dynamic: bool = False) -> None:
        self._route: Route = route
        self.dynamic: bool = dynamic
        self._layouts: dict[tuple[str, int, bool], Layout] = {}
        """By direction ("out", "in"), stage that takes it, and whether it is for training."""
        self._of_micro_batch: dict[tuple[int, int], Layout] = {}
        """Layouts of activations sent whose gradients are still to come, by receiving stage and micro-batch."""
        self._training: bool = False
        self._expected: dict[int, deque[Message]] = {}
        self._posted: dict[int, deque[_Receipt]] = {}
        self._arrived: dict[Message, tuple[Layout, list[torch.Tensor]]] = {}
        self._sent: dict[int, deque[_Sent]] = {}
        self._places: list[dict[tuple[bool, int, int], int]] = []
        self._is_one_way: bool = False

    def forget_shapes(self) -> None:
        """The next activations are preceded by their layouts again. Called on all ranks of the pipeline."""
        self._layouts.clear()

    def begin(self, schedule: Schedule) -> None:
        """Starts a batch: posts the first receives."""
        me = self._route.rank
        self._training = schedule.is_training
        plan = messages(schedule)
        self._expected = {source: deque(row) for (source, target), row in plan.items() if target == me}
        self._posted = {source: deque() for source in self._expected}
        self._sent = {target: deque() for source, target in plan if source == me}
        self._arrived.clear()
        self._of_micro_batch.clear()
        self._is_one_way = all(source < target for source, target in plan)
        self._places = [
            {(a.op is not Op.F, a.stage, a.micro_batch): place for place, a in enumerate(row) if a.op is not Op.W}
            for row in schedule.rows
        ]
        for source in self._expected:
            self._post(source)

    # ---- sending ----

    def send_activation(self, message: Message, target: int, value: Any) -> None:
        """Starts sending what a stage gave to the pipe rank of the next stage.

        Raises:
            PipelineError: its layout is not that of the first.
        """
        stage = message.stage
        layout, tensors = describe(value, f"stage {message.action.stage}")
        key = ("out", stage, self._training)
        known = self._layouts.get(key)
        if self.dynamic or known is None:
            header = encode(layout).to(self._route.device)
            length = torch.tensor([header.numel()], dtype=torch.int64, device=self._route.device)
            self._start(message, target, [length, header], "pipeline shapes")
            self._layouts[key] = layout
        elif layout != known:
            raise PipelineError(
                f"stage {message.action.stage} gave {layout} for micro-batch {message.micro_batch}, and {known} "
                "before: set pipeline.dynamic_shape (PipelineModule(dynamic_shape=True)) where shapes change from "
                "one micro-batch to the next, or call engine.reset_activation_shape() on all ranks where they "
                "change once"
            )
        self._of_micro_batch[stage, message.micro_batch] = layout
        self._start(message, target, [tensor.detach() for tensor in tensors], "pipeline activations")

    def send_gradients(self, message: Message, target: int, gradients: Sequence[torch.Tensor]) -> None:
        """Starts sending gradients of what a stage received to the pipe rank of the stage before."""
        self._start(message, target, gradients, "pipeline gradients")

    def _start(self, message: Message, target: int, tensors: Sequence[torch.Tensor], scope: str) -> None:
        group, world_rank = self._route.group(self._route.rank, target), self._route.world_ranks[target]
        handles, kept = [], []
        for tensor in tensors:
            flat = _sendable(tensor)
            with comm.scope(scope):
                handles.append(comm.isend(flat, world_rank, group=group))
            kept.append(flat)
        place = self._places[target][message.is_gradient, message.stage, message.micro_batch]
        under_way = self._sent[target]
        under_way.append(_Sent(place, handles, kept))
        while self._is_one_way and len(under_way) > IN_FLIGHT:
            self._let_go(target, under_way.popleft())

    def _let_go(self, target: int, sent: _Sent) -> None:
        for handle in sent.handles:
            _wait(handle, target, "a message to be taken")

    # ---- receiving ----

    def take_activation(self, message: Message, source: int) -> Any:
        """What the stage before gave, with leaves that take gradients. Waits for it."""
        layout, tensors = self._take(message, source)
        for leaf, tensor in zip(layout.tensors, tensors, strict=True):
            tensor.requires_grad_(leaf.has_gradient and self._training)
        return layout.join(tensors)

    def take_gradients(self, message: Message, source: int) -> list[torch.Tensor]:
        """Gradients of what this rank's stage gave. Waits for them."""
        return self._take(message, source)[1]

    def _take(self, message: Message, source: int) -> tuple[Layout, list[torch.Tensor]]:
        while message not in self._arrived:
            self._post(source)
            if not self._posted[source]:
                raise AssertionError(f"{message} is not among what pipe rank {source} sends, or it came before")
            self._arrive(source)
            self._post(source)
        return self._arrived.pop(message)

    def _post(self, source: int) -> None:
        """Starts receiving what comes next, as far as its layout is known."""
        expected, posted = self._expected[source], self._posted[source]
        while expected and len(posted) < AHEAD:
            if posted and posted[-1].layout is None:
                return  # what follows a layout that has not arrived is not known either
            message = expected[0]
            receipt = _Receipt(message)
            if message.is_gradient:
                # The message's stage takes the gradient of what it sent to the next one.
                layout = self._of_micro_batch.get((message.stage + 1, message.micro_batch))
                if layout is None:
                    return  # not sent yet, so nothing can come back
                receipt.layout = Layout("tuple", (), layout.gradients)
            elif not self.dynamic:
                receipt.layout = self._layouts.get(("in", message.stage, self._training))
            if receipt.layout is None:
                receipt.length = torch.empty(1, dtype=torch.int64, device=self._route.device)
                receipt.handles = [self._receive(receipt.length, source, "pipeline shapes")]
            else:
                self._post_tensors(receipt, source)
            posted.append(receipt)
            expected.popleft()

    def _post_tensors(self, receipt: _Receipt, source: int) -> None:
        assert receipt.layout is not None
        scope = "pipeline gradients" if receipt.message.is_gradient else "pipeline activations"
        receipt.tensors = [leaf.empty(self._route.device) for leaf in receipt.layout.tensors]
        receipt.handles = [self._receive(_bytes_of_bool(tensor), source, scope) for tensor in receipt.tensors]

    def _receive(self, tensor: torch.Tensor, source: int, scope: str) -> Any:
        group = self._route.group(source, self._route.rank)
        with comm.scope(scope):
            return comm.irecv(tensor, self._route.world_ranks[source], group=group)

    def _arrive(self, source: int) -> None:
        """Waits for the first message posted."""
        receipt = self._posted[source][0]
        message = receipt.message
        kind = "gradient" if message.is_gradient else "activation"
        what = f"the {kind} of micro-batch {message.micro_batch} from stage {message.action.stage}"
        if receipt.length is not None:
            _wait(receipt.handles[0], source, what)
            header = torch.empty(int(receipt.length), dtype=torch.uint8, device=self._route.device)
            _wait(self._receive(header, source, "pipeline shapes"), source, what)
            receipt.layout, receipt.length = decode(header), None
            self._layouts["in", message.stage, self._training] = receipt.layout
            self._post_tensors(receipt, source)
            self._post(source)
        for handle in receipt.handles:
            _wait(handle, source, what)
        self._posted[source].popleft()
        assert receipt.layout is not None
        self._arrived[message] = (receipt.layout, receipt.tensors)
        if message.is_gradient:
            self._of_micro_batch.pop((message.stage + 1, message.micro_batch), None)
        self._settle(source, message)

    def _settle(self, peer: int, message: Message) -> None:
        """Lets go of what `peer` had taken when it made `message`; see Note [When a send is over]."""
        action = message.action
        place = self._places[peer][action.op is not Op.F, action.stage, action.micro_batch]
        under_way = self._sent.get(peer)
        while under_way and under_way[0].taken_at <= place:
            self._let_go(peer, under_way.popleft())

    @property
    def under_way(self) -> int:
        """Messages sent that are still held."""
        return sum(len(sent) for sent in self._sent.values())

    def finish(self) -> None:
        """Waits until everything sent was taken."""
        for target, under_way in self._sent.items():
            while under_way:
                self._let_go(target, under_way.popleft())


def _wait(handle: Any, peer: int, what: str) -> None:
    try:
        handle.work.wait()
    except RuntimeError as error:
        raise LostError(peer, what, (str(error).strip().splitlines() or [type(error).__name__])[0]) from error


def _sendable(tensor: torch.Tensor) -> torch.Tensor:
    return _bytes_of_bool(tensor.contiguous())


def _bytes_of_bool(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8) if tensor.dtype is torch.bool else tensor
