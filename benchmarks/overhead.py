"""S14: what the engine's step costs in Python beside a loop by hand, on a model of 2 million parameters."""

from __future__ import annotations

import json
from typing import Any

from harness import WORKLOADS, Context, Sample
from rows import Row, judge, shown

STEPS, QUICK_STEPS = 200, 4
BATCHES = {"reference batch": ("4", "128"), "smallest batch": ("1", "32")}
"""Micro-batch and tokens; the first is that of the reference workload and is what the target is about."""
LOOPS = {"engine": "the default optimizer", "torch": "`torch_adam: true`"}


def engine_overhead(context: Context) -> tuple[list[Row], dict[str, Any]]:
    """S14."""
    rows: list[Row] = []
    measured: dict[str, Any] = {}
    for batch, (micro, seq) in BATCHES.items():
        steps = QUICK_STEPS if context.quick else STEPS
        arguments = [str(WORKLOADS / "overhead.py"), str(steps), "--micro", micro, "--seq", seq]
        result = json.loads(context.ours.run(arguments, timeout_s=3600, OMP_NUM_THREADS="1").splitlines()[-1])
        samples = {name: Sample(tuple(times)) for name, times in result["times"].items()}
        hand = samples["hand"]
        context.say("  " + ", ".join(f"{name} {sample.median * 1e3:.3f} ms" for name, sample in samples.items()))
        for loop, name in LOOPS.items():
            ratio = samples[loop].median / hand.median - 1
            size = f"{result['params'] / 1e6:.1f} M parameters, {micro} x {seq} tokens"
            what = f"engine's step over a loop by hand, {size}, {name}"
            value = f"{ratio:+.1%}"
            note = f"{_ms(samples[loop])} against {_ms(hand)}"
            if batch == "reference batch":
                rows.append(judge("S14", what, "<= 3%", value, ratio <= 0.03, note))
            else:
                rows.append(shown("S14", what, value, note))
        losses = result["losses"]
        far = max(abs(loss - losses["hand"]) for loss in losses.values())
        if far > 1e-3:
            rows.append(judge("S14", "the loops reach the same loss", "<= 1e-3 apart", f"{far:.2g}", False))
        measured[batch] = {
            "tokens": [int(micro), int(seq)],
            "losses": losses,
            "loops": {name: sample.to_json() for name, sample in samples.items()},
        }
    return rows, measured


def _ms(sample: Sample) -> str:
    return sample.text("ms", lambda seconds: seconds * 1e3)
