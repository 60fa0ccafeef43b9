"""Metrics for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ds_core.errors import MissingWheelError
from ds_core.monitors.base import Event, FileSection, folder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardMonitor"]

_FLUSH_SECS = 10


class TensorBoardMonitor:
    """Writes scalars to an event file below ``output_path/job_name``; a resumed run adds a file to the same folder.

    Args:
        section: object with ``output_path`` and ``job_name``.

    Raises:
        MissingWheelError: the package tensorboard is not installed.
    """

    def __init__(self, section: FileSection) -> None:
        self.path = folder(section)
        self._writer = _writer_class()(log_dir=str(self.path), flush_secs=_FLUSH_SECS)

    def write(self, events: Sequence[Event]) -> None:
        """Adds the events as scalars."""
        for event in events:
            self._writer.add_scalar(event.name, event.value, event.step, walltime=event.wall_time)

    def flush(self) -> None:
        """Writes the event file out."""
        self._writer.flush()

    def close(self) -> None:
        """Writes the event file out and closes it."""
        self._writer.close()


def _writer_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingWheelError(
            f"tensorboard.enabled is true, but the package tensorboard cannot be imported ({error}). "
            "Install it: pip install tensorboard"
        ) from error
    return SummaryWriter
