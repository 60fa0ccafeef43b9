"""Writes the golden checkpoints of DeepSpeed anew: ``nox -s golden``, or with a Python that has DeepSpeed.

    python tools/golden_deepspeed.py PEERS_PYTHON [CASE ...]

For every case of packages/ds-zero/tests/golden/deepspeed/program.py it runs the program under torchrun, then converts
what is to be universal, and keeps the checkpoint beside `expected.safetensors`: the values that must come out of it,
and the weights after the next update. DeepSpeed is used as it is published, by its documented functions only.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "packages" / "ds-zero" / "tests" / "golden" / "deepspeed"
PROGRAM = GOLDEN / "program.py"
TIMEOUT_S = 600


def program() -> ModuleType:
    """The program, as a module."""
    spec = importlib.util.spec_from_file_location("golden_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(python: str, work: Path, *arguments: str) -> None:
    """Runs Python with its own environment first on the path; compilers' caches are left alone.

    DeepSpeed compiles as it runs. It does so in a folder of this tool's: in the user's own, the lock of a compilation
    that was killed once makes every later run wait for ever. What was started ends with it, its children too.
    """
    environ = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CCACHE_DISABLE": "1"}
    environ |= {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(work / "extensions")}
    environ["PATH"] = f"{Path(python).parent}{os.pathsep}{environ['PATH']}"
    command = [python, "-m", *arguments]
    with subprocess.Popen(command, env=environ, start_new_session=True) as process:
        try:
            code = process.wait(TIMEOUT_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def make(python: str, name: str, case: Any, work: Path) -> None:
    """Writes one case, and its universal form."""
    launch = ["--nproc-per-node", str(case.ranks), "--master-port", str(random.randint(20000, 29000))]
    run(python, work, "torch.distributed.run", *launch, str(PROGRAM), name, str(work))
    expected: dict[str, torch.Tensor] = torch.load(work / name / "expected.pt", weights_only=True)
    keep(work / name / "global_step3", GOLDEN / name / "global_step3")
    (GOLDEN / name / "latest").write_text("global_step3")
    if case.universal:
        target = work / f"{name}-universal" / "global_step3_universal"
        source = str(work / name / "global_step3")
        flags = ["--inject_missing_state", "--input_folder", source, "--output_folder", str(target)]
        run(python, work, "deepspeed.checkpoint.ds_to_universal", *flags)
        expected |= universal_states(target, {key: value.shape for key, value in expected.items()})
        if case.universal == "kept":
            keep(target, GOLDEN / f"{name}-universal" / target.name)
            (GOLDEN / f"{name}-universal" / "latest_universal").write_text(target.name)
    tensors = {key: value.detach().clone().contiguous() for key, value in expected.items()}
    save_file(tensors, GOLDEN / name / "expected.safetensors")


def universal_states(folder: Path, shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """The optimizer states of a universal checkpoint by our names; trusted, since we just made it."""
    found = {}
    for path in sorted(folder.glob("zero/*/exp_avg*.pt")):
        content = torch.load(path, weights_only=True)
        values = content["param"] if isinstance(content, dict) else content
        master = torch.load(path.parent / "fp32.pt", weights_only=True)
        name = path.parent.name
        found[f"optimizer/{path.stem}/{name}"] = values.view(shapes[f"model/{name}"])
        found[f"optimizer/master/{name}"] = (master["param"] if isinstance(master, dict) else master).view(
            shapes[f"model/{name}"]
        )
    return found


def keep(source: Path, target: Path) -> None:
    """Copies a checkpoint's data; DeepSpeed also leaves scripts of its own there, which are no data."""
    shutil.rmtree(target.parent, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.py"))


def main(python: str, *chosen: str) -> None:
    """All cases, or those named."""
    cases = program().CASES
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases.items():
            if not chosen or name in chosen:
                make(python, name, case, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
