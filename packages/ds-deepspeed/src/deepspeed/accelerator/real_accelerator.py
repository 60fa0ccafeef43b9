"""The accelerator of this job, under DeepSpeed's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from ds_core import accelerator as accelerators

if TYPE_CHECKING:
    from deepspeed.accelerator.abstract_accelerator import DeepSpeedAccelerator

__all__ = ["get_accelerator", "is_current_accelerator_supported", "set_accelerator"]

_views: dict[str, DeepSpeedAccelerator] = {}


def get_accelerator() -> DeepSpeedAccelerator:
    """The device in use; chosen by ``DS_ACCELERATOR``, else automatically."""
    from deepspeed.accelerator.abstract_accelerator import DeepSpeedAccelerator

    device = accelerators.in_use() or accelerators.current()
    if device.id not in _views:
        _views[device.id] = DeepSpeedAccelerator(device)
    return _views[device.id]


def set_accelerator(accel_obj: Any) -> NoReturn:
    """Refused: a device comes with a wheel.

    Raises:
        AcceleratorError: always.
    """
    from ds_core.errors import AcceleratorError

    raise AcceleratorError(
        f"set_accelerator({type(accel_obj).__name__}) is not taken: an accelerator is a wheel that registers "
        "ds_accelerators (see ds_core.accelerator.Accelerator), and is chosen by DS_ACCELERATOR or the config"
    )


def is_current_accelerator_supported() -> bool:
    """True: what can be chosen can be used."""
    return bool(accelerators.current().name)
