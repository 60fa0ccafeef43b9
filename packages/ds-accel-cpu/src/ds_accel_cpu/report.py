"""Rows of ``ds report`` about the CPU."""

from __future__ import annotations

import sys

import torch

from ds_accel_cpu import _binding
from ds_accel_cpu.aio import refusal
from ds_accel_cpu.isa import library, usable_levels
from ds_accel_cpu.threads import borrow_from_torch
from ds_core.errors import DsError
from ds_core.hooks import ReportRow

__all__ = ["rows"]

SECTION = "ds-accel-cpu"


def rows() -> list[ReportRow]:
    """Level, features and threads; a level that cannot be used is a row with status error, not an exception."""
    try:
        loaded = library()
        level = ReportRow(SECTION, "kernel library", f"{loaded.target} ({loaded.build})", "ok")
    except DsError as error:
        level = ReportRow(SECTION, "kernel library", str(error), "error")
    unusable = [each for each in _binding.levels() if not each.usable]
    lender = "torch's OpenMP runtime" if borrow_from_torch() else "a pool of its own"
    return [
        level,
        ReportRow(SECTION, "levels usable here", ", ".join(usable_levels()) or "none"),
        *(ReportRow(SECTION, f"level {each.name}", f"not used: the machine {each.reason}") for each in unusable),
        *(ReportRow(SECTION, "level not built", reason) for reason in _binding.levels_left_out()),
        ReportRow(SECTION, "processor features", " ".join(_binding.features()) or "none that matter to the levels"),
        ReportRow(SECTION, "threads", f"{torch.get_num_threads()} of {lender}, as torch.set_num_threads says"),
        _io(),
        _collectives(),
    ]


def _io() -> ReportRow:
    reason = refusal()
    return ReportRow(SECTION, "file I/O", f"threads: {reason}" if reason else "io_uring", "warn" if reason else "ok")


def _collectives() -> ReportRow:
    name = "collectives"
    if sys.platform != "linux":
        return ReportRow(SECTION, name, "gloo: shared segments need Linux", "warn")
    from ds_accel_cpu.comm import segment
    from ds_accel_cpu.comm.connect import unusable

    reason = unusable()
    if reason:
        return ReportRow(SECTION, name, f"gloo: {reason}", "warn")
    slots = f"{segment.SLOTS} slots of {segment.SLOT_BYTES >> 10} KiB a rank, rings of {segment.RING_BYTES >> 10} KiB"
    return ReportRow(SECTION, name, f"shm: {slots}; up to {segment.cores()} ranks spin before they sleep", "ok")
