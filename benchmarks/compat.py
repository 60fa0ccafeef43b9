"""The same scripts, configs and seeds under deepspeed and under this project's wheel of that name: equal losses?

    python benchmarks/compat.py --peers-python PYTHON     run by `nox -s bench-compat`

The scripts are workloads/compat.py, and examples/hf_trainer.py with a small Llama, for which both environments need
transformers and accelerate.

Ends with 1 where a loss or a norm differs by more than the bound. fp32 runs differ by the order of sums. With bf16
weights are rounded once a step, so that a difference in the last place of a master can move a weight by a whole place.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import ROOT, WORKLOADS, Side, Unavailable, make_side

BOUNDS = {"fp32": 2e-5, "bf16": 2e-2}
"""Largest relative difference of a loss over all steps."""
SPAN = {"losses": 1.0, "norms": 20.0}
"""Norms are differences of large sums: how many bounds they may be apart."""


TRAINER = {
    f"{dtype}, Trainer, stage {stage}": ["--stage", str(stage), *(["--fp32"] if dtype == "fp32" else [])]
    for dtype in ("fp32", "bf16")
    for stage in (2, 3)
}
"""Runs of examples/hf_trainer.py, and what distinguishes them."""


def run(side: Side, house: Path, extensions: Path, ranks: int, names: list[str]) -> dict[str, Any]:
    """What the scripts write, in one environment."""
    house.mkdir()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    environ = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(extensions), "OMP_NUM_THREADS": "1"}
    out = house / "compat.json"
    side.run([*launch, str(WORKLOADS / "compat.py"), str(out), *(names or ["all"])], timeout_s=900, **environ)
    found: dict[str, Any] = json.loads(out.read_text())
    model = house.parent / "model"
    options = ["--model", str(model), "--data", str(model / "text.txt"), "--output", str(house / "out")]
    options += ["--steps", "10", "--context", "32", "--batch", str(4 * ranks), "--accumulate", "2", "--lr", "3e-3"]
    for name, own in TRAINER.items():
        if not names or name in names:
            result = house / "trainer.json"
            command = [*launch, str(ROOT / "examples" / "hf_trainer.py"), *options, *own, "--result", str(result)]
            try:
                side.run(command, timeout_s=300, **environ)
                found["runs"][name] = json.loads(result.read_text())
            except Unavailable as error:
                found["runs"][name] = {"error": str(error)}
    return found


def apart(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference."""
    if len(ours) != len(theirs):
        return float("inf")
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True))


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Prints a line for each run; whether all are within the bounds."""
    print(f"deepspeed {theirs['version']} and {ours['version']}")
    print(f"{'':22} {'first loss':>11} {'last loss':>11} {'losses apart':>13} {'norms apart':>12} {'bound':>8}")
    good = True
    for name, run_ours in ours["runs"].items():
        run_theirs = theirs["runs"][name]
        pairs = (("ours", run_ours), ("theirs", run_theirs))
        errors = [f"{who}: {found['error']}" for who, found in pairs if "error" in found]
        if errors:
            good = good and "error" not in run_ours
            print(f"{name:22} {'; '.join(errors)}")
            continue
        bound = BOUNDS[name.split(",")[0]]
        told = [what for what in SPAN if run_theirs[what]]
        found = {what: apart(run_ours[what], run_theirs[what]) for what in told}
        is_close = "losses" in told and all(found[what] <= bound * SPAN[what] for what in told)
        good = good and is_close
        first, last = run_theirs["losses"][0], run_ours["losses"][-1]
        norms = f"{found['norms']:.1e}" if "norms" in found else "none"
        cells = f"{first:11.6f} {last:11.6f} {found['losses']:13.1e} {norms:>12} {bound:8.0e}"
        print(f"{name:22} {cells}{'' if is_close else '  too far'}")
    return good


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", type=Path, required=True, help="Python of the environment with deepspeed")
    parser.add_argument("--peers-extensions", type=Path, help="folder with kernels that deepspeed already built")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="Python with this project's wheels")
    parser.add_argument("--only", nargs="+", default=[], metavar="RUN", help='such as "fp32, stage 0"')
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a file for all figures, as JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compat-") as scratch:
        house = Path(scratch)
        extensions = asked.peers_extensions or house / "extensions"
        sides = {"theirs": make_side(asked.peers_python.absolute()), "ours": make_side(asked.python.absolute())}
        sides["ours"].run([str(WORKLOADS / "small_llama.py"), str(house / "model")], timeout_s=120)
        theirs, ours = (run(side, house / who, extensions, asked.ranks, asked.only) for who, side in sides.items())
    if asked.out:
        asked.out.write_text(json.dumps({"ours": ours, "theirs": theirs}, indent=1) + "\n")
    sys.exit(0 if compare(ours, theirs) else 1)


if __name__ == "__main__":
    main()
