"""Preemption: a signal to any rank makes all ranks save at the same step, and stop or go on.

Note [Agreement]
    Ranks hear of a signal at different times, or some not at all. Each puts what it heard into one number, and the
    largest over all ranks decides: it is sent when the gradients are done and read when the step is, so the update
    hides it. 8 bytes a step, counted in the scope ``preemption``, and only while signals are watched.
"""

from __future__ import annotations

import logging
import signal
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_core.checkpoint.together import together
from ds_core.comm.objects import control_device
from ds_core.errors import CheckpointError, Preempted
from ds_core.part import Part, Update
from ds_core.signals import SignalWatch, parse_signals

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.comm.issue import Waitable
    from ds_core.engine_api import EngineApi

__all__ = ["OnSignal", "Preemption"]

logger = logging.getLogger(__name__)

STOP = 1 << 16
"""Added to the number of a signal that stops, so that stopping beats going on; see Note [Agreement]."""


@dataclass(frozen=True, slots=True)
class OnSignal:
    """What to do on which signal.

    Attributes:
        folder: where checkpoints go, the ``save_dir`` of `save_checkpoint`.
        stop: save, then raise `Preempted`.
        go_on: save, then go on.
        client_state: called on all ranks for what the checkpoint keeps besides.
    """

    folder: Path
    stop: frozenset[signal.Signals]
    go_on: frozenset[signal.Signals]
    client_state: Callable[[], dict[str, Any]] | None = None

    def code(self, received: Iterable[signal.Signals]) -> int:
        """The number this rank puts into the agreement; 0 when nothing was received."""
        return max((number + STOP * (number in self.stop) for number in received), default=0)


class Preemption(Part):
    """Comes last, so that a step is complete when it saves. Watches nothing until it is told to."""

    name = "preemption"
    after = ("reporting",)

    def __init__(self) -> None:
        self._policy: OnSignal | None = None
        self._watch: SignalWatch | None = None
        self._code: torch.Tensor = torch.zeros((), dtype=torch.int64)
        self._agreement: Waitable | None = None

    def prepare(self, build: Build) -> None:
        """Watches what ``checkpoint.on_signal`` names."""
        section = build.config["checkpoint"].on_signal
        if section.folder is not None:
            self.watch(OnSignal(section.folder, *parse_signals(section.stop, section.go_on, "checkpoint.on_signal.")))

    def watch(self, policy: OnSignal | None) -> None:
        """Follows `policy` from the next step on; None watches nothing. Called on all ranks.

        Raises:
            CheckpointError: the folder cannot be made.
            EngineError: this is not the main thread.
        """
        self.close()
        if policy is None:
            return
        make = (lambda: policy.folder.mkdir(parents=True, exist_ok=True)) if comm.get_rank() == 0 else lambda: None
        together("make the folder", policy.folder, make)
        self._code = self._code.to(control_device())
        self._watch = SignalWatch(policy.stop | policy.go_on)
        self._policy = policy
        weakref.finalize(self, self._watch.close).atexit = False  # an engine that is never destroyed lets go, too

    def before_update(self, update: Update) -> None:
        """Asks the other ranks what they heard; see Note [Agreement]."""
        if self._policy is None or self._watch is None or comm.get_world_size() == 1:
            return
        self._code.fill_(self._policy.code(self._watch.take()))
        with comm.scope("preemption"):
            self._agreement = comm.all_reduce(self._code, comm.ReduceOp.MAX, async_op=True)

    def after_step(self, engine: EngineApi) -> None:
        """Saves when some rank was signalled.

        Raises:
            Preempted: the signal stops, and the checkpoint is on disk.
            CheckpointError: it could not be saved.
        """
        if self._policy is None or self._watch is None:
            return
        if comm.get_world_size() == 1:
            code = self._policy.code(self._watch.take())
        elif self._agreement is not None:
            self._agreement.wait()
            code, self._agreement = int(self._code), None
        else:  # watched since this step's update
            return
        if code:
            self._save(engine, self._policy, signal.Signals(code % STOP), stops=code >= STOP)

    def _save(self, engine: EngineApi, policy: OnSignal, number: signal.Signals, *, stops: bool) -> None:
        tag = f"global_step{engine.global_steps}"
        path = policy.folder / tag
        if comm.get_rank() == 0:
            logger.warning("%s: saving %s", number.name, path)
        try:
            engine.wait_for_checkpoint()
        except CheckpointError as error:
            logger.error("%s: an earlier save had failed: %s", number.name, error)  # this one is tried all the same
        state = policy.client_state() if policy.client_state is not None else {}
        engine.save_checkpoint(policy.folder, tag=tag, client_state=state)
        engine.wait_for_checkpoint()
        if comm.get_rank() == 0:
            logger.warning("%s: saved %s; %s", number.name, path, "stopping" if stops else "going on")
        if not stops:
            return
        assert self._watch is not None
        for late in self._watch.take():
            logger.warning("%s came while %s was saved, and changed nothing: the rank stops", late.name, path)
        raise Preempted(path, number)

    def close(self) -> None:
        """Gives the signals back to whom they belonged."""
        if self._watch is not None:
            self._watch.close()
        self._policy = self._watch = self._agreement = None
