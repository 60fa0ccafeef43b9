"""S13: how long training waits for a checkpoint of one gigabyte, and how long it takes until it is on disk."""

from __future__ import annotations

import json
from typing import Any

from harness import ROOT, WORKLOADS, Context, Sample
from rows import Row, judge, shown


def asynchronous(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """S13, on the disk this tree is on."""
    folder = ROOT / "build" / "bench-checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    size = ["--bytes", str(1 << 26), "--rounds", "2"] if context.quick else ["--rounds", str(max(context.rounds, 5))]
    printed = context.ours.run([str(WORKLOADS / "checkpoint.py"), str(folder), *size], timeout_s=1800)
    measured = json.loads(printed.splitlines()[-1])
    samples = {
        name: {kind: Sample(tuple(values)) for kind, values in kinds.items()}
        for name, kinds in measured["times"].items()
    }
    blocked, whole = samples["engine"]["blocked"], samples["engine"]["whole"]
    saved, disk, dcp = samples["torch.save"]["whole"], samples["disk"]["whole"], samples["dcp"]
    share = saved.median / blocked.median
    ratio = whole.median / disk.median
    what = f"async checkpoint of {measured['bytes'] / 1e9:.2f} GB"
    first_s = measured["first"]["engine"]["blocked"]
    rows = [
        judge(
            "S13",
            f"{what}: time training is blocked",
            "<= 1/15 of `torch.save` + fsync",
            f"1/{share:.1f}",
            share >= 15,
            f"{_s(blocked)} against {_s(saved)}; the first save of a run, which makes the memory, {first_s:.3f} s",
        ),
        judge("S13", f"{what}: until it is on disk", "<= 1.1 x the disk's time", f"{ratio:.2f} x", ratio <= 1.1,
              f"{_s(whole)} against {_s(disk)}"),
        shown("S13", f"{what}: torch.distributed.checkpoint.async_save blocks", _s(dcp["blocked"]),
              f"and is written after {_s(dcp['whole'])}"),
    ]  # fmt: skip
    return rows, measured


def _s(sample: Sample) -> str:
    return sample.text("s")
