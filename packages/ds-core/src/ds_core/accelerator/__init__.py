"""One device kind behind a small contract, and the choice of the one this job uses."""

from __future__ import annotations

from ds_core.accelerator.abilities import computes_in
from ds_core.accelerator.agreement import agree
from ds_core.accelerator.contract import Accelerator, Capability, MemorySnapshot
from ds_core.accelerator.host import HostAccelerator
from ds_core.accelerator.host_event import HostEvent
from ds_core.accelerator.host_half import host_half
from ds_core.accelerator.selection import Selection, choose, current, in_use, select
from ds_core.plugins.probing import Candidate, candidates

__all__ = [
    "Accelerator",
    "Candidate",
    "Capability",
    "HostAccelerator",
    "HostEvent",
    "MemorySnapshot",
    "Selection",
    "agree",
    "candidates",
    "choose",
    "computes_in",
    "current",
    "host_half",
    "in_use",
    "select",
]
