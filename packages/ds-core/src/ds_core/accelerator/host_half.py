"""`host_half`: the host's own accelerator, for what the host does in a job that runs on another device."""

from __future__ import annotations

import logging

from ds_core.accelerator.contract import Accelerator
from ds_core.accelerator.request import by_request
from ds_core.accelerator.selection import Selection, instantiate
from ds_core.errors import DsError
from ds_core.plugins import PluginManager
from ds_core.plugins import manager as process_manager

__all__ = ["host_half"]

logger = logging.getLogger(__name__)

_ASKED_BY = "the host's half of the work"
_MEMO = "the host's accelerator"


def host_half(manager: PluginManager | None = None) -> Accelerator | None:
    """The accelerator ``cpu`` as installed, ds-core's own reference where no wheel brings one.

    The same object each time. It is not selected: devices, dtypes and collectives stay those of the job's accelerator.
    None, with one warning, where the wheel that has the name is broken, since nobody asked for it by name.

    Args:
        manager: the plugins to choose from; the process-wide ones when None.
    """
    manager = process_manager() if manager is None else manager
    memo: dict[str, Accelerator | None] = manager.memo.setdefault(_MEMO, {})
    if "made" not in memo:
        try:
            memo["made"] = instantiate(Selection(by_request("cpu", _ASKED_BY, manager), _ASKED_BY))
        except DsError as error:
            logger.warning("the host does its half of the work without a wheel of its own: %s", error)
            memo["made"] = None
    return memo["made"]
