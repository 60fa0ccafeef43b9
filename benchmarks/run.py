"""Measures every target that can be measured, beside the peers, and writes the results and the page about them.

    python benchmarks/run.py --peers-python PYTHON            everything; run by `nox -s bench`
    python benchmarks/run.py --only S8 S9 ...                 these, beside what was last measured of the others
    python benchmarks/run.py --quick                          tiny sizes, to see that all programs work

Runs in an environment with this project's wheels and matplotlib. Ends with 1 when a measurement of this project itself
failed; a missed target or a peer that cannot run is a line of the table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import adam
import checkpoint
import collectives
import disk
import divided
import levels
import overhead
import page
import roofline
import roofline_page
import startup
import training
from harness import ROOT, Context, Noise, Side, Unavailable, machine, make_side
from rows import Row, skipped

Measurement = Callable[[Context], tuple[list[Row], dict[str, Any]]]


SECTIONS: dict[str, tuple[str, Measurement]] = {
    "S1": ("imports", startup.imports),
    "S2": ("first step with empty caches", startup.first_steps),
    "S8": ("Adam", adam.adam_step),
    "S9": ("the whole update", adam.whole_update),
    "levels": ("S8 and S9 by instruction-set level", levels.by_level),
    "roofline": ("every kernel under the machine's roofs", roofline.kernels),
    "S14": ("overhead of the engine", overhead.engine_overhead),
    "S6": ("state held and bytes sent (S6, S7)", training.counts),
    "S3": ("training (S3, S4, S4b, S5)", training.speed_and_memory),
    "S11": ("swapping to a disk", disk.swaps),
    "S12": ("a step with its state on disk", disk.steps),
    "S10": ("collectives between the ranks of one machine", collectives.exchange),
    "S13": ("checkpoints while training goes on", checkpoint.asynchronous),
    "pipe": ("a model in stages", divided.pipelines),
    "moe": ("a mixture of experts over ranks", divided.mixtures),
}


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


def versions(side: Side, names: Sequence[str]) -> dict[str, str]:
    """Installed versions, of what is installed."""
    program = (
        "import importlib.metadata as m, json\n"
        "found = {}\n"
        f"for name in {list(names)!r}:\n"
        "    try:\n        found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError:\n        pass\n"
        "print(json.dumps(found))"
    )
    found: dict[str, str] = json.loads(side.run(["-c", program], timeout_s=60))
    return found


def measure(context: Context, wanted: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Sections by name, and what went wrong with our own side."""
    sections: dict[str, Any] = {}
    broken = []
    for id in wanted:
        title, run = SECTIONS[id]
        say(f"{id}: {title}")
        noise = Noise()
        try:
            rows, measured = run(context)
        except Unavailable as reason:
            rows, measured = [skipped(id, title, "", reason)], {}
            broken.append(f"{id}: {reason}")
        for row in rows:
            say(f"  {row.status:9} {row.id:4} {row.what}: {'; '.join(filter(None, (row.value, row.note)))}")
        sections[id] = {"rows": [row.to_json() for row in rows], "measured": measured, "noise": noise.to_json()}
    return sections, broken


def to_text(results: Any) -> str:
    """JSON with a list of figures on one line, each to six digits, so that two runs can be compared by eye."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [rounded(item) for item in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    text = json.dumps(rounded(results), indent=1)
    figures = re.compile(r"\[([-+.eE\d\s,]*)\]")
    return figures.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"


def earlier(folder: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """Sections that this run leaves out, as they were last measured on a machine like this one; each has its time."""
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("????-??-??.json")):
        results = json.loads(file.read_text())
        if results["machine"] == machine():
            found |= results["sections"]
    return {id: section for id, section in found.items() if id in SECTIONS and id not in wanted}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", type=Path, help="Python of the environment with the peers")
    parser.add_argument("--peers-missing", default="", help="why there is no such environment; stated on the page")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="Python with this project's wheels")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds, into build/bench")
    parser.add_argument("--out", type=Path, help="folder that gets benchmarks/results and docs (default: this tree)")
    parser.add_argument("--peers-extensions", type=Path, help="folder with kernels that deepspeed already built")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    out = asked.out or (ROOT / "build" / "bench" if asked.quick else ROOT)
    missing = asked.peers_missing or ("" if asked.peers_python else "no --peers-python was given")
    ours = make_side(asked.python.absolute())
    peers = make_side(asked.peers_python.absolute()) if asked.peers_python else None
    today = datetime.date.today().isoformat()
    file = out / "benchmarks" / "results" / f"{today}.json"
    results: dict[str, Any] = {"sections": {} if asked.quick else earlier(file.parent, asked.only)}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        context = Context(
            ours=ours,
            peers=peers,
            peers_missing=missing,
            quick=asked.quick,
            rounds=2 if asked.quick else asked.rounds,
            scratch=Path(scratch),
            extensions=asked.peers_extensions or Path(scratch) / "extensions",
            say=say,
        )
        wheels = versions(ours, ["ds-core", "ds-zero", "ds-accel-cpu", "torch", "numpy"])
        found = {"ours": wheels}
        if peers is not None:
            found["peers"] = versions(peers, ["deepspeed", "torch", "numpy"])
        results |= {
            "date": today,
            "machine": machine(),
            "versions": found,
            "peers_missing": missing,
            "rounds": context.rounds,
            "quick": asked.quick,
        }
        sections, broken = measure(context, asked.only)
        results["sections"] |= sections
        results["left_out"] = [title for id, (title, _) in SECTIONS.items() if id not in results["sections"]]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_text(results))
    pages = [page.write(results, out / "docs")]
    if results["sections"].get("roofline", {}).get("measured"):
        pages.append(roofline_page.write(results, out / "docs"))
    say(f"wrote {', '.join(str(path.relative_to(out)) for path in (file, *pages))} in {out}")
    if broken:
        sys.exit("this project's own side failed: " + "; ".join(broken))


if __name__ == "__main__":
    main()
