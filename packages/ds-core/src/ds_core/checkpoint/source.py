"""`Source`: an open checkpoint of any format, read by logical names.

Logical names are ``model/<parameter or buffer>``, ``optimizer/master/<parameter>`` (the finer copy of mixed precision),
``optimizer/<state>/<parameter>`` (``exp_avg``, ``exp_avg_sq``, ...) and ``random/<generator>/<rank>``.
Values are ``optimizer`` (``{"type", "groups"}``; the type is None where the format does not say), ``optimizer_scalars``
(``{parameter: {"taken": steps, ...}}``), ``lr_scheduler``, ``loss_scale`` and ``data``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

__all__ = ["Source"]


@runtime_checkable
class Source(Protocol):
    """A checkpoint that is open for reading: a `ds_core.state.StateReader` that knows where it came from.

    Attributes:
        path: the folder that holds the files.
        format: name of the format, as in the hook ``ds_checkpoint_formats``.
        strict: parts should refuse when something of theirs is missing.
        counters: any of global_steps, global_samples, micro_steps, skipped_steps.
        client_state: JSON-able values that were saved with the checkpoint.
    """

    path: Path
    format: str
    strict: bool

    @property
    def counters(self) -> Mapping[str, int]:
        """Any of global_steps, global_samples, micro_steps, skipped_steps."""

    @property
    def client_state(self) -> dict[str, Any]:
        """JSON-able values that were saved with the checkpoint."""

    def keys(self) -> Sequence[str]:
        """Names of all logical tensors."""

    def shape(self, key: str) -> tuple[int, ...]:
        """Logical shape of `key`."""

    def dtype(self, key: str) -> torch.dtype:
        """The dtype `key` was saved in."""

    def read(self, key: str, out: torch.Tensor, start: int = 0) -> None:
        """Fills 1-D `out` with elements ``start <= i < start + out.numel()`` of `key`, cast to out's dtype.

        Reads no more of the files than these elements need.
        """

    def full(self, key: str) -> torch.Tensor:
        """The whole logical tensor in its saved dtype and shape."""

    def value(self, name: str, default: Any = None) -> Any:
        """A JSON value saved under `name`."""

    def verify(self, share: int = 0, shares: int = 1) -> None:
        """Checks the sums of this share of the bytes, where the format has any.

        Raises:
            CheckpointError: bytes changed; names the file.
        """

    def close(self) -> None:
        """Lets go of open files; the source cannot be read afterwards."""
