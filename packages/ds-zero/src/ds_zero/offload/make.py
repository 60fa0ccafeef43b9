"""Makes the placement that the config asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_core.aio import SwapStore, make_io
from ds_core.errors import ConfigError
from ds_core.optim.flat import supports_flat
from ds_core.placement import Placement
from ds_zero.offload.file import FilePlacement, FilePolicy
from ds_zero.offload.host import HOST, HostPlacement

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_zero.config import ZeroConfig

__all__ = ["make_placement"]


def make_placement(build: Build, config: ZeroConfig) -> Placement:
    """Where masters and optimizer states live.

    Where the device is the host, its memory is host memory: cpu is what is done anyway, whatever the ratio.

    Raises:
        ConfigError: the caller's optimizer cannot be moved.
        OffloadError: the folder for files cannot be used.
    """
    offload = config.offload_optimizer
    if offload.device == "none":
        return Placement()
    given = build.optimizer
    if given is not None and build.config.training.zero_force_ds_cpu_optimizer and not supports_flat(given):
        raise ConfigError(
            f"an optimizer given by hand ({type(given).__name__}) with zero_optimization.offload_optimizer.device "
            f"{offload.device}: name one in the config instead (optimizer.type AdamW), which is then made for the "
            "host, or set zero_force_ds_cpu_optimizer to false to run yours there"
        )
    more: dict[str, Any] = {
        "ratio": offload.ratio,
        "tile_numel": config.sub_group_size,
        "accelerator": build.accelerator if offload.pin_memory else None,
    }
    if offload.device == "cpu":
        return Placement() if build.device.type == HOST.type else HostPlacement(**more)
    assert offload.nvme_path is not None
    io = make_io(build.accelerator, build.config["aio"])
    try:
        store = SwapStore(offload.nvme_path, build.rank, io, buffer_count=offload.buffer_count)
    except BaseException:
        io.close()
        raise
    policy = FilePolicy(offload.pipeline_read, offload.pipeline_write, offload.fast_init)
    return FilePlacement(store, io, policy, **more)
