"""The comms logger: latency and bandwidth of every collective, only while it is switched on (`comms_logger`)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ds_core.errors import CommError, did_you_mean

__all__ = ["CommsLogger", "CommsLoggerSettings"]

logger = logging.getLogger(__name__)

_SAME = {
    "all_gather_into_tensor": "all_gather",
    "allgather_fn": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_fn": "reduce_scatter",
    "all_to_all_single": "all_to_all",
    "inference_all_reduce": "all_reduce",
}
"""Functions that are one operation; both names work in `prof_ops`."""


@dataclass(frozen=True, slots=True)
class CommsLoggerSettings:
    """The `comms_logger` section.

    Args:
        enabled: measure at all. Measuring waits for each collective, so it slows training down.
        verbose: one log line for every collective.
        prof_all: measure every operation; False measures only those in `prof_ops` or called with ``prof=True``.
        prof_ops: names of the operations to measure when `prof_all` is false.
        debug: add the calling function to the name under which a call is logged.
    """

    enabled: bool = False
    verbose: bool = False
    prof_all: bool = True
    prof_ops: tuple[str, ...] = ()
    debug: bool = False

    def updated(self, values: Mapping[str, Any]) -> CommsLoggerSettings:
        """These settings with those values that are not None; unknown names are an error."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in values:
            if name not in known:
                allowed = ", ".join(known)
                raise CommError(f"comms_logger has no {name!r}; known: {allowed}.{did_you_mean(name, known)}")
        given = {name: value for name, value in values.items() if value is not None}
        if "prof_ops" in given:
            given["prof_ops"] = tuple(_SAME.get(name, name) for name in given["prof_ops"])
        return dataclasses.replace(self, **given)


class CommsLogger:
    """Latencies by name and payload size. `wanted` is the only question asked while it is switched off."""

    def __init__(self) -> None:
        self.settings = CommsLoggerSettings()
        self._times: dict[str, dict[int, list[float]]] = {}

    def wanted(self, op: str, prof: bool) -> bool:
        """Whether a call of `op` is measured."""
        settings = self.settings
        return settings.enabled and (settings.prof_all or prof or op in settings.prof_ops)

    def add(self, name: str, payload_bytes: int, sent_bytes: int, seconds: float) -> None:
        """Record one measured call."""
        row = self._times.setdefault(name, {}).setdefault(payload_bytes, [0.0, 0.0, 0.0])
        row[0] += 1
        row[1] += seconds
        row[2] += sent_bytes
        if self.settings.verbose:
            logger.info(
                "%s: %d bytes in %.3f ms, %.2f Gbit/s payload, %.2f Gbit/s on the bus",
                name,
                payload_bytes,
                1e3 * seconds,
                _gbps(payload_bytes, seconds),
                _gbps(sent_bytes, seconds),
            )

    def reset(self) -> None:
        """Forget every measurement."""
        self._times.clear()

    def names(self) -> list[str]:
        """Names under which anything was measured."""
        return sorted(self._times)

    def count(self, name: str | None = None) -> int:
        """Measured calls, of one name or of all."""
        chosen = self._times.values() if name is None else [self._times.get(name, {})]
        return int(sum(row[0] for sizes in chosen for row in sizes.values()))

    def summary(self) -> dict[str, dict[int, dict[str, float]]]:
        """Name -> payload bytes -> count, total_ms, avg_ms, algbw_gbps, busbw_gbps."""
        return {
            name: {
                size: {
                    "count": row[0],
                    "total_ms": 1e3 * row[1],
                    "avg_ms": 1e3 * row[1] / row[0],
                    "algbw_gbps": _gbps(size * row[0], row[1]),
                    "busbw_gbps": _gbps(row[2], row[1]),
                }
                for size, row in sorted(sizes.items())
            }
            for name, sizes in sorted(self._times.items())
        }


def _gbps(data_bytes: float, seconds: float) -> float:
    return 8e-9 * data_bytes / seconds if seconds > 0 else 0.0
