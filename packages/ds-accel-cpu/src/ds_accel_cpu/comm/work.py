"""`ShmWork`: torch's handle of a collective, and `Staging`, which lets native code see contiguous tensors only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import Work

from ds_accel_cpu.comm.transport import Pending

__all__ = ["ShmWork", "Staging"]

_LOOK_S = 0.5
_GRACE_S = 10.0
"""After the main thread has ended, how long a future may still wait for its collective."""


class Staging:
    """Contiguous tensors that stand for the caller's own in one call."""

    def __init__(self) -> None:
        self.held: list[torch.Tensor] = []
        self._written: list[tuple[torch.Tensor, torch.Tensor]] = []

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous tensor with the values."""
        contiguous = _checked(tensor).contiguous()
        self.held.append(contiguous)
        return contiguous

    def write(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous tensor to be written."""
        if _checked(tensor).is_contiguous():
            self.held.append(tensor)
            return tensor
        contiguous = torch.empty(tensor.shape, dtype=tensor.dtype)
        self._written.append((tensor.detach(), contiguous))
        return contiguous

    def update(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous tensor to be read and written."""
        contiguous = self.read(tensor)
        if contiguous.data_ptr() != tensor.data_ptr() or not tensor.is_contiguous():
            self._written.append((tensor.detach(), contiguous))
        return contiguous

    def bring_back(self) -> None:
        """Copies what was written into the caller's tensors, once, and lets go of everything."""
        written, self._written, self.held = self._written, [], []
        for own, contiguous in written:
            own.copy_(contiguous)


def _checked(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        raise ValueError(
            f"backend shm takes dense tensors on the CPU, got one on {tensor.device} with layout {tensor.layout}"
        )
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError("backend shm takes no lazily conjugated or negated views; call .resolve_conj() or .clone()")
    return tensor.detach()


class ShmWork(Work):
    """A collective, or several as one, under way or over.

    Args:
        pending: what is under way; empty when all is done.
        staging: tensors that native code works on.
        results: the caller's tensors that the call writes.
        settle: runs a function in the thread that sets the futures of the group.
    """

    def __init__(
        self,
        pending: Sequence[Pending],
        staging: Staging,
        results: Sequence[torch.Tensor],
        settle: Callable[[Callable[[], None]], object],
    ) -> None:
        super().__init__()
        self._run_later: Callable[[Callable[[], None]], object] = settle
        self._pending: list[Pending] = list(pending)
        self._staging = staging
        self._results: list[torch.Tensor] = list(results)
        self._lock = threading.Lock()
        self._is_finished = False
        self._future: Any = None
        if not self._pending:
            self._finish()

    def _finish(self) -> None:
        with self._lock:
            if not self._is_finished:
                self._staging.bring_back()
                self._is_finished = True

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Waits until the results are there. A timeout of 0 is the group's own, as torch has it.

        Raises:
            RuntimeError: the collective failed, or did not end within `timeout`.
        """
        limit_s = timeout.total_seconds() if timeout > timedelta(0) else -1.0
        for pending in self._pending:
            if not pending.wait(limit_s):
                raise RuntimeError(f"the operation did not end within {limit_s:g} s; it is still under way")
        self._finish()
        return True

    def synchronize(self) -> None:
        """As `wait`."""
        self.wait()

    def block_current_stream(self) -> None:
        """As `wait`: the host has no streams."""
        self.wait()

    def is_completed(self) -> bool:
        """Whether `wait` would return at once."""
        return all(pending.is_over() for pending in self._pending)

    def is_success(self) -> bool:
        """Whether it ended without an error."""
        return self.is_completed() and not self._error()

    def exception(self) -> Any:
        """The error, or None."""
        text = self._error()
        return RuntimeError(text) if text else None

    def _error(self) -> str:
        return next((pending.error for pending in self._pending if pending.error), "")

    def result(self) -> list[torch.Tensor]:
        """The caller's tensors that the call writes."""
        return self._results

    def source_rank(self) -> int:
        """The sender of a message that was received, as its number in the group."""
        return self._pending[0].source if self._pending else -1

    _source_rank = source_rank

    def get_future(self) -> Any:
        """torch's future of the results; it is set by a thread of its own, in the order of issue."""
        with self._lock:
            if self._future is not None:
                return self._future
            self._future = torch.futures.Future()
            is_finished = self._is_finished
        if is_finished:
            self._future.set_result(self._results)
        else:
            self._run_later(self._settle)
        return self._future

    def _settle(self) -> None:
        try:
            self._wait_while_alive()
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to who waits for the future
            self._future.set_exception(error)
            return
        self._future.set_result(self._results)

    def _wait_while_alive(self) -> None:
        """Waits, but not on behalf of a program that has ended."""
        left = _GRACE_S
        for pending in self._pending:
            while not pending.wait(_LOOK_S):
                if not threading.main_thread().is_alive():
                    left -= _LOOK_S
                if left <= 0:
                    raise RuntimeError("the program ended before this collective")
        self._finish()
