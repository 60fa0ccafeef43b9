"""Draws what was measured: one picture per comparison, medians with the range from minimum to maximum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from harness import short
from matplotlib.axes import Axes

OURS, THEIRS, LIMIT = "#1b6ca8", "#b8b8b8", "#c0392b"
NAMES = {
    "plain": "one rank\nalone",
    "plain x2": "two ranks,\nno comm.",
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "fsdp2m": "FSDP2,\nfp32 master",
    "ours": "ours",
    "fused": "torch\nfused",
    "foreach": "torch\nforeach",
}

Sample = Mapping[str, Any]


def name_of(engine: str) -> str:
    """How an engine is called in a picture."""
    if engine[:-1] in ("ds", "ours") and engine[-1].isdigit():
        return f"{'deepspeed' if engine.startswith('ds') else 'ours'}\nstage {engine[-1]}"
    return NAMES.get(engine, engine)


def bars(axes: Axes, samples: Mapping[str, Sample], label: str, scale: Callable[[float], float] = lambda v: v) -> None:
    """A bar per sample: its median, and a line from the least to the most."""
    for place, (engine, sample) in enumerate(samples.items()):
        middle = scale(sample["median"])
        ends = sorted((scale(sample["min"]), scale(sample["max"])))
        color = OURS if engine.startswith(("ours", "ds_core")) else THEIRS
        axes.bar(place, middle, color=color, width=0.7)
        axes.plot([place, place], ends, color="black", linewidth=1)
        axes.annotate(short(middle), (place, max(ends[1], middle)), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(samples)), [name_of(engine) for engine in samples], fontsize=8)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)


def line(axes: Axes, height: float) -> None:
    """A bound; the title says of what."""
    axes.axhline(height, color=LIMIT, linewidth=1, linestyle="--")


def startup(sections: Mapping[str, Any], folder: Path) -> list[str]:
    """Import times and times to the first step."""
    if not {"S1", "S2"} <= set(sections):
        return []
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(3, 2))
    imports = sections["S1"]["measured"]
    bars(
        left,
        {name.replace(", ", ",\n").replace(" with its", "\nwith its"): imports[name] for name in imports},
        "seconds",
    )
    left.set_title("import (dashed: the target)")
    line(left, 0.15)
    bars(right, sections["S2"]["measured"], "seconds")
    right.set_title("process start to first step,\nempty caches", fontsize=10)
    return [save(figure, folder, "startup.png")]


def adam(sections: Mapping[str, Any], folder: Path) -> list[str]:
    """Adam by itself, and the whole update."""
    if not {"S8", "S9"} <= set(sections):
        return []
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    alone = sections["S8"]["measured"]
    moved = 28 * alone["numel"] / 1e9
    engines = dict(alone["engines"])
    bound = engines.pop("bound", None)
    bars(axes[0], engines, "GB/s of 28 bytes a parameter", lambda seconds: moved / seconds)
    axes[0].set_title("Adam step (dashed: read+write\nbandwidth of this machine)", fontsize=10)
    if bound is not None:
        line(axes[0], moved / bound["median"])
    for place, (job, kind) in enumerate((("update", "fp32"), ("update16", "bf16")), start=1):
        bars(axes[place], sections["S9"]["measured"][job]["engines"], "milliseconds", lambda seconds: seconds * 1e3)
        axes[place].set_title(f"unscale, norm, clip, Adam,\nbf16 copy; {kind} gradients", fontsize=10)
    return [save(figure, folder, "adam.png")]


def training(sections: Mapping[str, Any], folder: Path) -> list[str]:
    """Tokens a second and peak memory of every engine."""
    if "S3" not in sections:
        return []
    measured = sections["S3"]["measured"]
    saved = []
    for key, label, title in (
        ("tokens_s", "tokens/s over all ranks", "reference training job"),
        ("peak_MB", "MB a rank above the interpreter", "peak memory"),
    ):
        figure, axes = plt.subplots(2, 1, figsize=(10, 6.4), layout="constrained")
        for place, precision in zip(axes, ("bf16", "fp32"), strict=True):
            hidden = ("plain", "plain x2") if key == "peak_MB" else ()
            engines = {name: job for name, job in measured[precision].items() if name not in hidden}
            bars(place, {name: job[key] for name, job in engines.items()}, label)
            place.set_title(f"{title}, {precision}")
        saved.append(save(figure, folder, f"training_{'speed' if key == 'tokens_s' else 'memory'}.png"))
    return saved


def overhead(sections: Mapping[str, Any], folder: Path) -> list[str]:
    """Step times of the engine and of a loop by hand."""
    if "S14" not in sections:
        return []
    measured = sections["S14"]["measured"]
    figure, axes = plt.subplots(1, len(measured), figsize=(10, 3.2), layout="constrained")
    for place, (batch, case) in zip(axes, measured.items(), strict=True):
        names = {"hand": "by hand", "engine": "engine", "torch": "engine,\ntorch_adam"}
        values = [[second * 1e3 for second in case["loops"][loop]["values"]] for loop in names]
        place.boxplot(values, tick_labels=list(names.values()), showfliers=False, widths=0.5)
        place.set_ylabel("milliseconds a step")
        place.set_title(f"{batch}: {' x '.join(map(str, case['tokens']))} tokens")
        place.spines[["top", "right"]].set_visible(False)
    return [save(figure, folder, "overhead.png")]


def save(figure: Any, folder: Path, name: str) -> str:
    """Writes a picture and returns its name."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return name


def draw(sections: Mapping[str, Any], folder: Path) -> list[str]:
    """Every picture there are figures for."""
    kinds: Sequence[Callable[[Mapping[str, Any], Path], list[str]]] = (training, adam, startup, overhead)
    return [name for kind in kinds for name in kind(sections, folder)]
