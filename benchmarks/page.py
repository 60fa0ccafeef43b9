"""Writes docs/explanation/performance.md from a results file: page.py RESULTS [--docs FOLDER]. Measures nothing."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import plots

ROOT = Path(__file__).parent.parent
TITLES = {
    "training_speed.png": "Tokens per second of the reference training job by engine",
    "training_memory.png": "Peak memory of a rank by engine",
    "adam.png": "Adam by itself and with everything around it",
    "startup.png": "Import and first step",
    "overhead.png": "Step times of the engine and of a loop by hand",
}

INTRODUCTION = """\
`python -m nox -s bench` measures this project and its peers side by side in one run, each in an environment of its
own, and writes this page and `benchmarks/results/`. Engines take turns; a figure is the median of {rounds} interleaved
rounds (more where it says so), with the minimum and maximum in brackets, as lines in the pictures, and in the results
file. A target is a ratio taken within the run, or a count. Nothing that was tried is left out: a row that could not be
measured says why, and the target of something this version does not have is *not built*.
"""

METHOD = """\
## What is compared

- **Training (S3 to S5).** A GPT of 34 M parameters (8 layers, 512 wide, vocabulary 8192), micro-batch of 4 x 128
  tokens, clipping at 1, AdamW, 2 ranks with one thread each. Every engine starts from the same weights, sees the same
  tokens; the losses are compared. A round starts every engine anew. Peak memory is the most a rank had resident
  less what it had after importing its framework and before a process group or a model.
- **Precision.** With bf16, deepspeed and this project keep float32 masters and moments. DDP, FSDP2 and the single
  process hold everything in bfloat16 and keep no master: less work, less memory. *FSDP2, fp32 master* keeps one.
- **deepspeed's optimizer.** In the training job torch's (`torch_adam`). In S2, S8 and S9 its own CPU Adam, which the
  machine's compiler builds at its first use.
- **The limit (S4b).** The same job in one process that communicates with nobody and has the machine to itself (*one
  rank alone* in the picture, where its tokens are those of one rank). *Two ranks, no comm.* is the same twice at
  once: what sharing the machine costs before anything is sent.
- **State and bytes sent (S6, S7).** Every tensor alive between steps that was not there before the engine is counted.
  Bytes sent are counted where collectives are called; M is the bytes of the bf16 model.
- **CPU Adam (S8).** One step over one tensor, 28 bytes a parameter: four arrays read, three written. The bound is a
  loop in C over OpenMP threads that reads and writes the same arrays and computes nothing.
- **The whole update (S9).** Unscale, global norm, clip, AdamW, and the result rounded into bfloat16. Here that is two
  passes over the data, the norm and the rest. For the peers it is one pass after the other, through torch and their
  optimizer; with bf16 gradients they widen them first.
- **First step (S2).** A fresh home, no cache of any kind. Compilers are counted by programs of their names, first in
  the path, that note the call.
- **Overhead (S14).** Three loops in one process on the same weights and tokens, taking turns, {steps} steps each.
"""


def write(results: Mapping[str, Any], docs: Path) -> Path:
    """The page and its pictures.

    Args:
        results: what a run wrote.
        docs: the folder of the documentation; the page is its ``explanation/performance.md``.
    """
    folder = docs / "explanation"
    pictures = plots.draw(results["sections"], folder / "img")
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "performance.md"
    page.write_text("\n".join(_lines(results, pictures)))
    return page


def _lines(results: Mapping[str, Any], pictures: list[str]) -> Iterator[str]:
    sections = results["sections"]
    rows = [row for section in sections.values() for row in section["rows"]]
    order = list(dict.fromkeys(sorted((row["id"] for row in rows), key=_number)))
    yield "# Performance"
    yield ""
    yield INTRODUCTION.format(rounds=results["rounds"])
    if results["quick"]:
        yield "!!! warning"
        yield "    A quick run with tiny sizes: it shows that the programs work and nothing else."
        yield ""
    tally = Counter(row["status"] for row in rows)
    yield (
        "; ".join(f"{tally[status]} {status}" for status in ("met", "missed", "skipped", "not built") if tally[status])
        + "."
    )
    if results.get("left_out"):
        yield ""
        yield f"Not measured on this machine: {'; '.join(results['left_out'])}."
    yield ""
    yield "## The machine"
    yield ""
    yield from _machine(results)
    yield "## Targets"
    yield ""
    yield "| # | what | target | measured | |"
    yield "| --- | --- | --- | --- | --- |"
    for id in order:
        for row in rows:
            if row["id"] == id:
                yield _row(row)
    yield ""
    for name in pictures:
        yield f"![{TITLES[name]}](img/{name})"
        yield ""
    yield METHOD.format(steps=_steps(sections))
    yield "## How quiet the machine was"
    yield ""
    yield "| measured | began | took | load before | processor time taken by other guests |"
    yield "| --- | --- | --- | --- | --- |"
    for id, section in sections.items():
        noise = section["noise"]
        took = f"{noise['took_s'] / 60:.1f} min"
        yield f"| {id} | {noise['began']} | {took} | {noise['load_before']:g} | {noise['stolen_percent']:g}% |"
    yield ""


def _machine(results: Mapping[str, Any]) -> Iterator[str]:
    machine = results["machine"]
    sets = ", ".join(machine["instruction_sets"]) or "none of note"
    kind = " (a virtual machine)" if machine["virtual"] else ""
    yield f"- {machine['processor']}, family/model/stepping {machine['family']}, {machine['cores']} cores{kind}; {sets}"
    yield f"- {machine['memory_GiB']:g} GiB of memory; {machine['system']}; Python {machine['python']}"
    for side, versions in results["versions"].items():
        yield f"- {side}: " + ", ".join(f"{name} {version}" for name, version in versions.items())
    if results["peers_missing"]:
        yield f"- peers: {results['peers_missing']}"
    yield ""


def _row(row: Mapping[str, str]) -> str:
    status = {"met": "met", "missed": "**missed**", "shown": ""}.get(row["status"], f"*{row['status']}*")
    note = f"<br><small>{row['note']}</small>" if row["note"] else ""
    cells = [row["id"], row["what"], row["target"], row["value"] + note, status]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _number(id: str) -> tuple[int, str]:
    digits = "".join(letter for letter in id if letter.isdigit())
    return int(digits or 1000), id  # what is no target comes last


def _steps(sections: Mapping[str, Any]) -> int:
    cases = sections.get("S14", {}).get("measured", {})
    return len(next(iter(cases.values()))["loops"]["hand"]["values"]) if cases else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    asked = parser.parse_args()
    print(write(json.loads(asked.results.read_text()), asked.docs))
