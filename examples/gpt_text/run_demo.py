"""The whole example in one command: trains on two processes, then lets the checkpoint write, in a process of its own.

    python examples/gpt_text/run_demo.py
    python examples/gpt_text/run_demo.py --data my-text.txt
    python examples/gpt_text/run_demo.py --resume

A new run takes the first free folder of ``runs/demo``, ``runs/demo-2``, ...; ``--resume`` goes on in the one with the
newest checkpoint. ``--out`` names the folder instead. Ctrl-C saves a checkpoint and ends.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import signal
import subprocess
import sys
import sysconfig
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from run_folder import RunFolder
from text import TextError, read_text

HERE = Path(__file__).resolve().parent
DEFAULT_OUT = Path("runs/demo")
FAULT = 2


def main() -> int:
    """Runs the example; its exit code is the training's."""
    started_s = time.monotonic()
    options = parse()
    try:
        if options.data is not None:
            read_text(options.data)  # a wrong file is told before anything starts
        folder = choose_folder(options.out, options.resume)
    except (TextError, FileNotFoundError) as error:
        print(f"run_demo.py: error: {error}", file=sys.stderr)
        return FAULT
    code = supervise(train_command(options, folder))
    checkpoint = folder.checkpoint()
    if code > 128 and checkpoint is None:
        print("\nStopped before the first step; there is nothing to save.")
    elif code > 128 and checkpoint is not None:
        print(f"\nStopped. The checkpoint is {shown(checkpoint)}. To go on:\n\n  {again(folder, '--resume')}")
    elif code == 0:
        code = generate(folder, options.prompt)
        summarise(folder, time.monotonic() - started_s)
    return code


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a GPT of ten million parameters here and now.")
    parser.add_argument("--data", type=Path, metavar="FILE", help="text to learn, UTF-8; default: Python's reference")
    parser.add_argument("--resume", action="store_true", help="go on with the newest run, or with that in --out")
    parser.add_argument("--steps", type=int, help="length of the run; default: that in the config")
    parser.add_argument("--nproc", type=int, default=2, help="processes; default 2")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the run; default: runs/demo, runs/demo-2, ...")
    parser.add_argument("--config", type=Path, default=HERE / "config.json", help="default: the one beside this file")
    parser.add_argument("--prompt", default="The", help="what the trained model goes on with")
    options, rest = parser.parse_known_args()
    options.rest = rest  # for train.py: --layers 8 --context 256
    return options


def choose_folder(out: Path | None, resume: bool) -> RunFolder:
    """The folder of the run.

    Raises:
        FileNotFoundError: there is nothing to resume.
    """
    if out is not None:
        return RunFolder(out)
    if not resume:
        names = itertools.chain([DEFAULT_OUT], (Path(f"{DEFAULT_OUT}-{number}") for number in itertools.count(2)))
        return next(folder for folder in map(RunFolder, names) if not folder.is_used)
    runs = [RunFolder(path) for path in DEFAULT_OUT.parent.glob(f"{DEFAULT_OUT.name}*")]
    saved = [(path.stat().st_mtime, run) for run in runs if (path := run.checkpoint()) is not None]
    if not saved:
        raise FileNotFoundError(f"--resume: there is no checkpoint in {DEFAULT_OUT}; leave --resume out to start a run")
    return max(saved, key=lambda pair: pair[0])[1]


def train_command(options: argparse.Namespace, folder: RunFolder) -> list[str]:
    """``ds run`` of this environment, with the training script."""
    command = [*ds(), "run", "--nproc", str(options.nproc), shown(HERE / "train.py")]
    command += ["--config", shown(options.config), "--out", str(folder.path)]
    if options.data is not None:
        command += ["--data", str(options.data)]
    if options.resume:
        command.append("--resume")
    if options.steps is not None:
        command += ["--steps", str(options.steps)]
    return [*command, *options.rest]


def generate(folder: RunFolder, prompt: str) -> int:
    """Lets the checkpoint write, in a fresh process, and keeps what it wrote; the exit code."""
    command = generate_command(folder, prompt)
    announce(command)
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False)
    if result.returncode == 0:
        folder.sample.write_text(result.stdout, encoding="utf-8")
        for line in result.stdout.splitlines():
            print(textwrap.fill(line, 78, initial_indent="  ", subsequent_indent="  "))
    return result.returncode


def generate_command(folder: RunFolder, prompt: str) -> list[str]:
    """The generator."""
    return [sys.executable, shown(HERE / "generate.py"), str(folder.path), "--prompt", prompt]


def announce(command: list[str]) -> None:
    """Prints a command as it could be typed."""
    print(f"\n$ {shlex.join([shown(Path(command[0])), *command[1:]])}\n", flush=True)


def supervise(command: list[str]) -> int:
    """Runs a command, shown first; its exit code. SIGINT, SIGTERM and SIGHUP are passed on to it."""
    announce(command)
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        elif process.poll() is None:
            process.send_signal(number)

    # Handlers come first: a program that is started while a signal is ignored (as nox does) would ignore it too.
    with handling(pass_on):
        # A session of its own: from the terminal, Ctrl-C reaches it once, through us.
        process = subprocess.Popen(command, start_new_session=True)
        for number in early:
            process.send_signal(number)
        code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def handling(handler: object) -> Iterator[None]:
    """While active, `handler` gets the signals that ask a program to end."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def summarise(folder: RunFolder, seconds: float) -> None:
    """What happened, what was written, and what to try next."""
    summary = folder.read_summary()
    memory = " + ".join(f"{peak / 2**20:.0f}" for peak in summary["peak_memory_bytes"])
    lines = [
        f"\nTrained {summary['steps']} steps on {summary['processes']} processes, {seconds:.0f} s in all.",
        f"  loss         {summary['first_loss']:.2f} -> {summary['last_loss']:.2f}"
        + (f", {summary['held_out_loss']:.2f} on text it never saw" if summary["held_out_loss"] is not None else ""),
        f"  speed        {summary['tokens_per_s']:,.0f} tokens/s",
        f"  peak memory  {memory} MiB",
        "\nWritten:",
    ]
    for path in (folder.checkpoint(), folder.plot, folder.metrics, folder.tensorboard, folder.sample):
        if path is not None and path.exists():
            lines.append(f"  {shown(path)}  {size(path)}")
    print("\n".join(lines))
    print("\nNext:")
    for command in (
        again(folder, "--resume", "--steps", str(2 * summary["of_steps"])),
        shlex.join([shown(Path(sys.executable)), *generate_command(folder, "A class")[1:]]),
        shlex.join([shown(Path(sys.executable)), shown(HERE / "run_demo.py"), "--data", "your-own-text.txt"]),
    ):
        print(f"  {command}")


def again(folder: RunFolder, *words: str) -> str:
    """The command line that calls this program for a folder."""
    out = [] if folder.path == DEFAULT_OUT else ["--out", str(folder.path)]
    return shlex.join([shown(Path(sys.executable)), shown(HERE / "run_demo.py"), *out, *words])


def ds() -> list[str]:
    """The ``ds`` command of the environment this runs in."""
    script = Path(sysconfig.get_path("scripts")) / "ds"
    return [str(script)] if script.exists() else [sys.executable, "-m", "ds_core.cli"]


def size(path: Path) -> str:
    """Bytes of a file, or of all files in a folder, as people read them."""
    files = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
    total = sum(file.stat().st_size for file in files)
    return f"{total / 1e6:.1f} MB" if total >= 1e6 else f"{max(total / 1e3, 0.1):.1f} kB"


def shown(path: Path) -> str:
    """The path from here, where it lies below."""
    absolute = path.absolute()  # not resolve(): the interpreter of an environment is a link
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
