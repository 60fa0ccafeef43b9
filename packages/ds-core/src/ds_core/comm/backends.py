"""Choose the torch.distributed backend and make backends that plugins bring known to torch.

Note [Backends of plugins]
A `CommBackendEntry` names a factory with the signature torch asks of third-party backends,
``factory(store, rank, world_size, timeout) -> torch.distributed.Backend``, and optionally
``supports(device_type=..., world_size=..., local_world_size=...) -> str | None``, a reason when it cannot serve.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch.distributed as dist

from ds_core.comm import staged
from ds_core.comm.discovery import Placement
from ds_core.errors import CommError, did_you_mean
from ds_core.hooks import CommBackendEntry

if TYPE_CHECKING:
    from ds_core.accelerator import Accelerator
    from ds_core.plugins import PluginManager

__all__ = ["choose_backend"]

logger = logging.getLogger(__name__)


def choose_backend(
    requested: str | None,
    environ: Mapping[str, str],
    placement: Placement,
    accelerator: Accelerator | None = None,
    manager: PluginManager | None = None,
) -> str:
    """The backend for ``init_process_group``: argument, DS_COMM_BACKEND, the accelerator's, gloo.

    A backend of a device is completed with gloo for host tensors (``"cpu:gloo,cuda:nccl"``). Where gloo is chosen for
    a device whose tensors it does not take, it is core's staged one; see Note [Staged collectives]. A backend that
    nobody asked for and that cannot serve the job gives way to gloo, with the reason in the log.
    """
    named = requested or environ.get("DS_COMM_BACKEND")
    asked_by = "dist_backend" if requested else "DS_COMM_BACKEND"
    device_type = "cpu"
    if not named:
        if accelerator is None:
            from ds_core.accelerator import select

            accelerator = select(environ=environ)
        named, asked_by = accelerator.comm_backend() or "gloo", f"accelerator {accelerator.name}"
        device_type = accelerator.device_type
    if accelerator is not None and named.lower() == "gloo" and not _gloo_takes(accelerator.device_type):
        named = staged.register(accelerator.device_type)
    is_asked_for = bool(requested or environ.get("DS_COMM_BACKEND"))
    for part in named.split(","):
        device, _, name = part.rpartition(":")
        reason = _make_known(name.strip().lower(), device or device_type, asked_by, placement, manager)
        if reason and is_asked_for:
            raise CommError(
                f"{asked_by} asks for communication backend {name!r}, which cannot serve this job: {reason}"
            )
        if reason:
            logger.warning("communication backend %s cannot serve this job, gloo is used: %s", name, reason)
            return "gloo"
    named = named.lower()
    if ":" in named or "," in named:
        return named
    devices = dist.Backend.backend_capability.get(named, [])
    if devices and "cpu" not in devices:
        return ",".join(["cpu:gloo", *(f"{device}:{named}" for device in devices)])
    return named


def _make_known(
    name: str, device_type: str, asked_by: str, placement: Placement, manager: PluginManager | None
) -> str | None:
    """Registers the backend with torch; or the reason why it cannot serve."""
    entry = _entry(name, manager)
    if entry is None:
        known = sorted({*dist.Backend.backend_list, *_plugin_names(manager)} - {"undefined"})
        if name not in dist.Backend.backend_list or not _built(name):
            why = "is not part of this torch build" if name in dist.Backend.backend_list else "is not known"
            raise CommError(
                f"{asked_by} asks for the communication backend {name!r}, which {why}; "
                f"known: {', '.join(known)}.{did_you_mean(name, known)}"
            )
        return None
    from ds_core.plugins import load_ref

    if entry.supports is not None:
        supports = load_ref(entry.supports)
        reason = supports(
            device_type=device_type, world_size=placement.world_size, local_world_size=placement.local_world_size
        )
        if reason:
            return str(reason)
    if name not in dist.Backend.backend_list:
        dist.Backend.register_backend(name, load_ref(entry.factory), devices=list(entry.device_types))
    return None


def _gloo_takes(device_type: str) -> bool:
    return device_type in dist.Backend.backend_capability["gloo"]


def _built(name: str) -> bool:
    checks = {
        "gloo": dist.is_gloo_available,
        "nccl": dist.is_nccl_available,
        "mpi": dist.is_mpi_available,
        "ucc": dist.is_ucc_available,
        "xccl": dist.is_xccl_available,
    }
    return checks[name]() if name in checks else True


def _entry(name: str, manager: PluginManager | None) -> CommBackendEntry | None:
    plugins = _manager(manager)
    if name not in _plugin_names(plugins):
        return None
    entry: CommBackendEntry = plugins.by_name("ds_comm_backends", name).item
    return entry


def _plugin_names(manager: PluginManager | None) -> list[str]:
    return [provided.item.name.lower() for provided in _manager(manager).collect("ds_comm_backends")]


def _manager(manager: PluginManager | None) -> PluginManager:
    if manager is not None:
        return manager
    from ds_core.plugins import manager as process_manager

    return process_manager()
