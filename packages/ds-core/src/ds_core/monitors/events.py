"""Names of the events an engine writes by itself; their x-axis is global samples."""

from __future__ import annotations

__all__ = ["GRAD_NORM", "LOSS_SCALE", "LR", "TRAIN_LOSS", "elapsed_ms", "peak_memory", "train_events"]

TRAIN_LOSS = "Train/Samples/train_loss"
LR = "Train/Samples/lr"
LOSS_SCALE = "Train/Samples/loss_scale"
GRAD_NORM = "Train/Samples/grad_norm"

_ELAPSED = "Train/Samples/elapsed_time_ms_"
_PEAK_MEMORY = "Train/Memory/peak_bytes_rank"


def elapsed_ms(phase: str) -> str:
    """Event name of the milliseconds spent in a phase: forward, backward, backward_inner, backward_allreduce, step."""
    return f"{_ELAPSED}{phase}"


def peak_memory(rank: int) -> str:
    """Event name of the peak memory of a rank, in bytes."""
    return f"{_PEAK_MEMORY}{rank}"


def peak_memory_rank(name: str) -> int | None:
    """The rank of a `peak_memory` event name, or None for other names."""
    digits = name.removeprefix(_PEAK_MEMORY)
    return int(digits) if digits != name and digits.isdigit() else None


def train_events(
    samples: int,
    *,
    loss: float | None = None,
    lr: float | None = None,
    loss_scale: float | None = None,
    grad_norm: float | None = None,
) -> list[tuple[str, float, int]]:
    """The standard events of an update, for `MonitorMaster.write_events`; values that are None are left out.

    Args:
        samples: global samples seen so far.
        loss: mean loss of the update.
        lr: learning rate of the first parameter group.
        loss_scale: scale used in the update.
        grad_norm: global gradient norm before clipping.
    """
    values = {TRAIN_LOSS: loss, LR: lr, LOSS_SCALE: loss_scale, GRAD_NORM: grad_norm}
    return [(name, float(value), samples) for name, value in values.items() if value is not None]
