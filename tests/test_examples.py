from __future__ import annotations

import importlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
GPT = ROOT / "examples" / "gpt_text"
MODULES = ("display", "generate", "model", "plan", "run_demo", "run_folder", "stopping", "text", "train")

if os.environ.get("DS_TEST_INSTALLED") != "1":  # nox installs both; elsewhere they may be absent
    for name in ("tokenizers", "matplotlib"):
        pytest.importorskip(name, reason=f"the example needs {name}")

TINY = ("--vocabulary", "300", "--context", "128", "--layers", "2", "--heads", "2", "--width", "32")
STEPS = 6
"""More than an epoch of the test text, which is three steps."""


# --- helpers ------------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """The examples are scripts: Python must be able to import what lies beside them."""
    return {**os.environ, "PYTHONSAFEPATH": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def program(name: str) -> str:
    """A program of the environment the tests run in."""
    return str(Path(sys.executable).parent / name)


def call(*command: str | Path, code: int = 0, folder: Path | None = None) -> str:
    """What a command prints on both streams; it must end with `code`."""
    result = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert result.returncode == code, result.stdout
    return result.stdout


def train_command(out: Path, data: Path, *more: str) -> list[str]:
    """`ds run` with a model small enough for a test."""
    command = [program("ds"), "run", "--nproc", "2", str(GPT / "train.py"), "--config", str(GPT / "config.json")]
    return [*command, "--out", str(out), "--data", str(data), "--log-every", "1", *TINY, *more]


def tensors(out: Path, tag: str) -> dict[str, Any]:
    """Everything in a checkpoint, whole: weights, moments, random states."""
    from ds_core.checkpoint import CheckpointReader

    reader = CheckpointReader(out / "checkpoints" / tag)
    return {key: reader.full(key) for key in list(reader.keys())}


def events(out: Path) -> dict[str, list[float]]:
    """Values of every metric, in the order they were written."""
    found: dict[str, list[float]] = {}
    for line in (out / "metrics" / "events.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["name"], []).append(row["value"])
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of a few thousand words."""
    draw = random.Random(0)
    words = ("the", "a", "model", "learns", "from", "text", "with", "every", "step", "until", "nothing", "is", "left")
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(draw.choice(words) for _ in range(3_000)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, data: Path) -> SimpleNamespace:
    """The driver's run of a few steps, undisturbed."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, GPT / "run_demo.py", "--data", data, "--steps", str(STEPS), *TINY]
    return SimpleNamespace(output=call(*command, folder=folder), folder=folder, out=folder / "runs" / "demo")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The example's modules, imported as its scripts import them, and forgotten afterwards."""
    monkeypatch.syspath_prepend(GPT)
    found: dict[str, ModuleType] = {name: importlib.import_module(name) for name in ("display", "plan", "text")}
    yield SimpleNamespace(**found)
    for name in MODULES:
        sys.modules.pop(name, None)


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.ranks
def test_the_demo_trains_plots_saves_and_writes_text(demo: SimpleNamespace) -> None:
    seen = events(demo.out)
    assert len(seen["Train/Samples/train_loss"]) == STEPS
    assert all(4 < loss < 8 for loss in seen["Train/Samples/train_loss"])
    assert len(seen["Train/Memory/peak_bytes_rank1"]) == STEPS
    assert min(seen["Train/Memory/peak_bytes_rank0"]) > 50 * 2**20
    assert " of 128 to learn, 1 held out" in demo.output  # so the second rank has none to test on
    assert all(4 < loss < 8 for loss in seen["Eval/Samples/held_out_loss"])
    assert len(seen["Eval/Samples/held_out_loss"]) == 1
    assert (demo.out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert list((demo.out / "tensorboard").glob("events.out.tfevents.*"))
    assert (demo.out / "sample.txt").read_text(encoding="utf-8").startswith("The")
    assert {path.name for path in (demo.out / "cache").iterdir()} == {
        json.loads((demo.out / "checkpoints" / f"step{STEPS}" / "manifest.json").read_text())["client_state"][
            "tokenizer"
        ]
    }


@pytest.mark.ranks
def test_the_demo_says_what_it_did_and_what_to_try(demo: SimpleNamespace) -> None:
    assert f"step {STEPS}/{STEPS}  loss " in demo.output
    assert "2 processes, ZeRO stage 1" in demo.output
    assert f"Trained {STEPS} steps on 2 processes" in demo.output
    for path in (f"checkpoints/step{STEPS}", "training.png", "metrics/events.jsonl", "tensorboard", "sample.txt"):
        assert re.search(rf"^  runs/demo/{path}  [\d.]+ [kM]B$", demo.output, flags=re.MULTILINE), path
    assert (
        len(re.findall(r"^  \S*python\S* \S*(?:run_demo|generate)\.py ", demo.output.partition("Next:")[2], re.M)) == 3
    )


@pytest.mark.ranks
def test_a_stopped_and_resumed_run_ends_bit_equal_to_an_undisturbed_one(
    demo: SimpleNamespace, data: Path, tmp_path: Path
) -> None:
    import torch

    call(*train_command(tmp_path, data, "--steps", str(STEPS), "--stop-after", "2"))
    output = call(*train_command(tmp_path, data, "--resume"))
    assert "Going on from" in output
    assert "step 1/" not in output
    whole, parts = tensors(demo.out, f"step{STEPS}"), tensors(tmp_path, f"step{STEPS}")
    assert whole.keys() == parts.keys()
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
    name = "Train/Samples/train_loss"
    assert events(tmp_path)[name] == events(demo.out)[name]


@pytest.mark.ranks
def test_ctrl_c_saves_the_same_step_on_all_ranks(data: Path, tmp_path: Path) -> None:
    command = train_command(tmp_path, data, "--steps", "100000")
    code, output = interrupt(command, tmp_path, "step 3/", signal.SIGINT)
    assert code == 128 + signal.SIGINT, output
    stopped = re.search(r"Stopping after step (\d+)", output)
    assert stopped, output
    assert "Traceback" not in output
    manifest = json.loads((tmp_path / "checkpoints" / f"step{stopped[1]}" / "manifest.json").read_text())
    assert manifest["counters"]["global_steps"] == int(stopped[1]) >= 3
    assert {"rank-00000.safetensors", "rank-00001.safetensors"} <= manifest["files"].keys()


@pytest.mark.ranks
def test_the_driver_passes_a_signal_on_and_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(GPT / "run_demo.py"),
        "--data",
        str(data),
        "--steps",
        "100000",
        "--nproc",
        "1",
        *TINY,
    ]
    code, output = interrupt([*command, "--log-every", "1"], tmp_path, "step 2/", signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, output
    assert re.search(r"run_demo\.py --resume$", output, flags=re.MULTILINE), output


def interrupt(command: list[str], folder: Path, at: str, number: signal.Signals) -> tuple[int, str]:
    """Start a command, send it a signal at the line that begins with `at`; its exit code and what it printed after."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        before: list[str] = []
        for line in process.stdout:
            before.append(line)
            if line.startswith(at):
                process.send_signal(number)
                break
        after = process.stdout.read()
    return process.returncode, after or "".join(before)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "has 0 characters, too few"),
        (b"short", "has 5 characters, too few"),
        ("Grüße ".encode("latin-1") * 2_000, "is not UTF-8 text (byte 2"),
    ],
)
def test_a_text_that_cannot_be_used_is_named_with_the_reason(
    example: SimpleNamespace, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(example.text.TextError, match=re.escape(message)) as caught:
        example.text.read_text(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_text(example: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(example.text.TextError, match="is a folder"):
        example.text.read_text(tmp_path)


def test_the_driver_refuses_a_wrong_file_before_it_starts_anything(tmp_path: Path) -> None:
    output = call(sys.executable, GPT / "run_demo.py", "--data", "nowhere.txt", code=2, folder=tmp_path)
    assert output == "run_demo.py: error: there is no file nowhere.txt\n"
    assert list(tmp_path.iterdir()) == []


def options(out: Path, **changes: Any) -> Namespace:
    """A command line for `plan`."""
    defaults: dict[str, Any] = {"data": None, "resume": False, "steps": None, "stop_after": None, "vocabulary": 300}
    return Namespace(config=GPT / "config.json", out=out, **{**defaults, **changes})


def test_a_used_folder_is_refused_unless_the_run_is_resumed(example: SimpleNamespace, demo: SimpleNamespace) -> None:
    from ds_core.errors import ConfigError

    with pytest.raises(ConfigError, match="holds a run already"):
        example.plan.plan(options(demo.out))
    assert example.plan.plan(options(demo.out, resume=True)).steps == STEPS


def test_there_must_be_something_to_resume(example: SimpleNamespace, tmp_path: Path) -> None:
    from ds_core.errors import ConfigError

    with pytest.raises(ConfigError, match="there is no checkpoint in"):
        example.plan.plan(options(tmp_path, resume=True))


def test_a_run_is_not_resumed_with_another_text(example: SimpleNamespace, demo: SimpleNamespace) -> None:
    from ds_core.errors import ConfigError

    planned = example.plan.plan(options(demo.out, resume=True))
    with pytest.raises(ConfigError, match="was trained on another text"):
        planned.tokenizer_file("another text")


def test_the_length_of_the_run_reaches_the_schedule(example: SimpleNamespace, tmp_path: Path) -> None:
    planned = example.plan.plan(options(tmp_path, steps=8))
    schedule = planned.config["scheduler"]["params"]
    assert (schedule["total_num_steps"], schedule["warmup_num_steps"]) == (8, 2)
    assert planned.config["jsonl_monitor"]["output_path"] == str(tmp_path)


# --- parts --------------------------------------------------------------------------------------------------------


def test_held_out_windows_are_not_learnt(example: SimpleNamespace, data: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    text = data.read_text(encoding="utf-8")
    path = example.text.tokenizer_path(tmp_path, text, 300)
    example.text.train_tokenizer(path, text, 300)
    written_ns = path.stat().st_mtime_ns
    example.text.train_tokenizer(path, text, 300)
    assert path.stat().st_mtime_ns == written_ns
    split = example.text.windows(Tokenizer.from_file(str(path)), text, 16)
    assert len(split.training) + len(split.held_out) == (split.tokens - 1) // 16
    assert len(split.held_out) == (split.tokens - 1) // 16 // example.text.HELD_OUT_EVERY
    inputs, targets = split.training[:]
    assert inputs[:, 1:].equal(targets[:, :-1])
    assert text.startswith(Tokenizer.from_file(str(path)).decode(inputs[0].tolist()))


def test_the_panel_fits_a_narrow_terminal(example: SimpleNamespace) -> None:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with example.display.Panel(console, 0, 200) as panel:
        panel.note("a note")
        for step in range(1, 121):
            panel.show(example.display.StepReport(step, 8 - step / 50, 1e-3, 0.5, 2345.6, [600 * 2**20, 590 * 2**20]))
    last = stream.getvalue().rpartition("step")[2]
    assert "120/200" in last
    assert "5.600" in last
    assert "2,346" in last
    assert "600, 590 MiB" in last
    assert max(len(line) for line in last.splitlines()) <= 80


def test_a_sparkline_falls_as_its_values_do(example: SimpleNamespace) -> None:
    assert example.display.sparkline([8, 6, 4, 2, 1], 80) == "█▆▄▂▁"
    assert example.display.sparkline([3, 3], 80) == "▁▁"
    assert len(example.display.sparkline(list(range(500)), 60)) == 60


def test_the_model_looks_at_no_later_token(example: SimpleNamespace) -> None:
    import torch

    model_module = importlib.import_module("model")
    torch.manual_seed(0)
    model = model_module.Gpt(model_module.Shape(vocabulary=50, context=8, layers=2, heads=2, width=16))
    tokens = torch.arange(8).unsqueeze(0)
    changed = tokens.clone()
    changed[0, 5] = 40
    before, after = model(tokens), model(changed)
    assert before[0, :5].equal(after[0, :5])
    assert not before[0, 5:].equal(after[0, 5:])
