"""Compares the fine-tuning example at stage 3 on two ranks with plain torch in one process: losses, memory, a picture.

    python benchmarks/finetune.py --model FOLDER [--steps 30] [--context 128]

The plain loop is by hand: the same samples as the ranks together, one after the other, gradients added in bfloat16, and
AdamW of torch on float32 masters. The example runs twice, with the accelerator's AdamW and with torch's. Writes
docs/explanation/img/finetune.png and benchmarks/results/finetune.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "finetune_smollm" / "train.py"
PICTURE = ROOT / "docs" / "explanation" / "img" / "finetune.png"
RESULT = ROOT / "benchmarks" / "results" / "finetune.json"
RANKS = 2
CLIP_EPSILON = 1e-6


def example() -> ModuleType:
    """The example's program, for its model, text and samples."""
    spec = importlib.util.spec_from_file_location("finetune_train", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """The same training in one process, with torch alone."""
    import torch

    program = example()
    model, tokens = program.load(options)
    parameters = [p for p in model.parameters() if p.requires_grad]
    masters = [torch.nn.Parameter(p.detach().float()) for p in parameters]
    settings = {**program.CONFIG["optimizer"]["params"], "lr": options.lr}
    optimizer = torch.optim.AdamW(masters, **settings, fused=True)
    shares = [program.batches(tokens, options, rank, RANKS) for rank in range(RANKS)]
    losses, started = [], time.monotonic()
    for step_batches in zip(*shares, strict=True):
        found = []
        for ids in step_batches:
            loss = model(input_ids=ids, labels=ids).loss
            (loss / RANKS).backward()
            found.append(loss.item())
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters))
        clip = min(1.0, program.CONFIG["gradient_clipping"] / (norm + CLIP_EPSILON))
        for master, parameter in zip(masters, parameters, strict=True):
            master.grad, parameter.grad = parameter.grad.float().mul_(clip), None
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for master, parameter in zip(masters, parameters, strict=True):
                parameter.copy_(master)
        losses.append(sum(found) / RANKS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"losses": losses, "peak_bytes": [peak], "seconds": time.monotonic() - started}


def compare(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Largest relative difference of a step's loss from that of the plain loop, by run."""
    reference = runs["plain"]["losses"]
    return {
        name: max(abs(a - b) / abs(a) for a, b in zip(reference, run["losses"], strict=True))
        for name, run in runs.items()
        if name != "plain"
    }


def draw(runs: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Losses by step, and how far the runs are from the plain loop."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, height_ratios=(2, 1))
    steps = range(1, len(runs["plain"]["losses"]) + 1)
    for (name, run), style in zip(runs.items(), ("-", "--", ":"), strict=False):
        upper.plot(steps, run["losses"], style, label=name, linewidth=1.5)
        if name != "plain":
            apart = [abs(a - b) / abs(a) for a, b in zip(runs["plain"]["losses"], run["losses"], strict=True)]
            lower.plot(steps, apart, style, label=name)
    upper.set_ylabel("loss, nats a token")
    upper.legend(frameon=False)
    lower.set_ylabel("relative difference\nfrom the plain loop")
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All runs, one after the other, each in processes of its own with one thread."""
    shared = ["--model", str(options.model), "--steps", str(options.steps), "--context", str(options.context)]
    shared += ["--micro-batch", str(options.micro_batch), "--lr", str(options.lr)]
    shared += ["--data", str(options.data)] if options.data else []
    ds = [str(Path(sys.executable).parent / "ds"), "run", "--nproc", str(RANKS), str(EXAMPLE)]
    commands = {
        "plain": [sys.executable, str(Path(__file__).resolve()), "--plain"],
        "stage 3": ds,
        "stage 3, torch's AdamW": [*ds, "--torch-adam"],
    }
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for place, (name, command) in enumerate(commands.items()):
            path = Path(folder) / f"{place}.json"
            subprocess.run([*command, *shared, "--result", str(path)], env=environ, check=True, stdout=sys.stderr)
            runs[name] = json.loads(path.read_text(encoding="utf-8"))
            print(f"{name}: {runs[name]['losses'][0]:.4f} to {runs[name]['losses'][-1]:.4f}", flush=True)
    apart = compare(runs)
    return {
        "ranks": RANKS,
        "steps": options.steps,
        "context": options.context,
        "runs": runs,
        "relative_difference": apart,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--plain", action="store_true", help="only the plain loop")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    result = plain(options) if options.plain else run(options)
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps(result, indent=None if options.plain else 1) + "\n", encoding="utf-8")
    if not options.plain:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        draw(result["runs"], options.picture)
        for name, apart in result["relative_difference"].items():
            print(f"{name}: losses within {apart:.2g} of the plain loop, relative")


if __name__ == "__main__":
    main()
