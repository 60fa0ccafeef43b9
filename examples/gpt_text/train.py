"""Trains a GPT of ten million parameters on text, on as many processes as ``ds run`` starts.

    ds run --nproc 2 examples/gpt_text/train.py --config examples/gpt_text/config.json --out runs/gpt

How to train (batch, optimizer, schedule, ZeRO stage, metrics) stands in the config; what to train, and on what, is
said here. Ctrl-C and SIGTERM save a checkpoint; ``--resume`` goes on at the next step and the next piece of text.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

import torch
from display import Display, StepReport, display
from model import Gpt, Shape
from plan import Plan, plan
from run_folder import RunFolder, Saved
from stopping import StopWish
from text import TextError, read_text, train_tokenizer, windows
from tokenizers import Tokenizer
from torch.utils.data import TensorDataset

import ds_core
from ds_core import comm
from ds_core.errors import DsError, MissingWheelError
from ds_core.monitors import peak_memory
from ds_core.monitors.events import TRAIN_LOSS
from ds_core.monitors.jsonl import read_events
from ds_core.monitors.plot import write_training_plot

FAULT = 2
"""Exit code where the command line, the config or the text is wrong."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small GPT on text.")
    add = parser.add_argument
    add("--config", type=Path, required=True, help="JSON config of the training")
    add("--out", type=Path, required=True, help="folder of the run")
    add("--data", type=Path, help="text to learn, UTF-8; without it the reference text of Python's help()")
    add("--resume", action="store_true", help="go on from the run's checkpoint; it also knows text and model")
    add("--steps", type=int, help="length of the run; default: total_num_steps of the schedule")
    add("--stop-after", type=int, metavar="STEP", help="save and end after this step, as Ctrl-C would")
    add("--save-every", type=int, default=500, metavar="STEPS", help="besides the end; default 500")
    add("--log-every", type=int, default=10, metavar="STEPS", help="lines where the output is no terminal")
    add("--vocabulary", type=int, default=2048, help="tokens, at least 256; default 2048")
    for name in ("context", "layers", "heads", "width"):
        default = getattr(Shape, name)
        add(f"--{name}", type=int, default=default, help=f"of the model; default {default}")
    options = parser.parse_args()
    for name, value in vars(options).items():
        least = 256 if name == "vocabulary" else 1
        if type(value) is int and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    return options


def main() -> int:
    """Trains. The exit code is 0 at the end, 128 + its number after a signal, `FAULT` for what cannot be used."""
    stop = StopWish()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    options = parse()
    try:
        return run(plan(options), stop)
    except (DsError, TextError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"train.py: error: {error}", file=sys.stderr, flush=True)
        return FAULT


def run(planned: Plan, stop: StopWish) -> int:
    """The run from beginning to end; its exit code. Called on all ranks."""
    text = read_text(planned.data)
    ds_core.init_distributed()
    tokenizer_file = planned.tokenizer_file(text)
    if comm.get_rank() == 0:
        train_tokenizer(tokenizer_file, text, planned.vocabulary)
    comm.barrier()
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    shape = planned.shape(tokenizer)
    data = windows(tokenizer, text, shape.context)

    torch.manual_seed(planned.config.get("seed", 0))
    model = Gpt(shape)
    engine, _, _, _ = ds_core.initialize(
        model=model,
        model_parameters=model.groups(planned.lr),
        training_data=data.training,
        config=planned.config,
    )
    loaded = engine.load_checkpoint(planned.folder.checkpoints)[0] if planned.saved is not None else None

    is_first, steps = comm.get_rank() == 0, planned.steps
    saved = Saved(shape, tokenizer_file.name, planned.vocabulary, str(planned.data) if planned.data else None, steps)
    training = Training(engine, planned, saved, stop)
    number = 0
    if engine.global_steps >= planned.last:
        if is_first:
            print(f"This run has reached step {engine.global_steps} already; to go on, give --steps a larger number.")
    else:
        with display(is_first, engine.global_steps, steps, planned.options.log_every) as shown:
            shown.note(
                f"GPT with {model.parameter_count / 1e6:.1f} million parameters, {comm.get_world_size()} processes, "
                f"ZeRO stage {engine.zero_optimization_stage()}\n"
                f"{data.tokens:,} tokens of text: {len(data.training):,} windows of {shape.context} to learn, "
                f"{len(data.held_out):,} held out"
            )
            if loaded is not None:
                shown.note(f"Going on from {loaded}")
            number = training.train(shown)
        training.save()
        held_out = training.held_out_loss(data.held_out) if engine.global_steps == steps else None
        if is_first:
            training.report(held_out)
    engine.destroy()
    comm.destroy_process_group()
    return 128 + number if number else 0


class Training:
    """The loop of one rank, and what it writes."""

    def __init__(self, engine: ds_core.Engine, planned: Plan, saved: Saved, stop: StopWish) -> None:
        self.engine = engine
        self.plan = planned
        self.folder: RunFolder = planned.folder
        self.saved = saved
        self.stop = stop
        self.speed = Speed(tokens_per_step=engine.train_batch_size() * saved.shape.context)
        self.peaks: list[int] = []
        """Peak memory in bytes of every rank whose device knows it."""

    def train(self, shown: Display) -> int:
        """Steps to the plan's last, or to a signal that any rank received; the signal's number or 0."""
        engine, save_every = self.engine, self.plan.options.save_every
        while engine.global_steps < self.plan.last:
            loss = engine.train_batch()
            mine = {"loss": loss.item(), "peak": engine.accelerator.memory().peak_bytes, "signal": self.stop.signal}
            with comm.scope("progress"):
                ranks = comm.gather_json(mine)
            self.speed.count()
            self.peaks = [row["peak"] for row in ranks if row["peak"] is not None]
            self._write_metrics()
            shown.show(
                StepReport(
                    step=engine.global_steps,
                    loss=sum(row["loss"] for row in ranks) / len(ranks),
                    lr=engine.get_lr()[0],
                    grad_norm=engine.get_global_grad_norm() or 0.0,
                    tokens_per_s=self.speed.tokens_per_s,
                    peak_memory=self.peaks,
                )
            )
            # Every rank sees the same rows, so all of them leave after the same step.
            number: int = max(row["signal"] for row in ranks)
            if number:
                shown.note(f"Stopping after step {engine.global_steps}")
                return number
            if engine.global_steps % save_every == 0 and engine.global_steps < self.plan.last:
                self.save()
        return 0

    def save(self) -> None:
        """Writes a checkpoint. Called on all ranks."""
        tag = f"step{self.engine.global_steps}"
        self.engine.save_checkpoint(self.folder.checkpoints, tag=tag, client_state=self.saved.to_json())

    def held_out_loss(self, data: TensorDataset) -> float:
        """Mean loss on text that was never trained on, each rank taking its share. Called on all ranks."""
        engine, total = self.engine, torch.zeros(2)
        mine = torch.arange(comm.get_rank(), len(data), comm.get_world_size())
        engine.eval()
        with torch.no_grad():
            for indices in mine.split(engine.train_micro_batch_size_per_gpu()) if len(mine) else ():
                inputs, targets = (part.to(engine.device) for part in data[indices])
                total += torch.tensor([engine(inputs, targets).item() * len(indices), len(indices)])
        engine.train()
        comm.all_reduce(total)
        return float(total[0] / total[1])

    def report(self, held_out: float | None) -> None:
        """Writes summary and plot. Called on the first rank."""
        engine, folder = self.engine, self.folder
        if held_out is not None:
            engine.monitor.write_events([("Eval/Samples/held_out_loss", held_out, engine.global_samples)])
        summary = {
            "steps": engine.global_steps,
            "of_steps": self.plan.steps,
            "processes": comm.get_world_size(),
            "tokens_per_s": self.speed.tokens_per_s,
            "seconds": self.speed.seconds,
            "peak_memory_bytes": self.peaks,
            "held_out_loss": held_out,
        }
        if folder.metrics.exists():
            losses = [event.value for event in read_events(folder.metrics) if event.name == TRAIN_LOSS]
            last = losses[-10:]
            summary |= {"first_loss": losses[0], "last_loss": sum(last) / len(last)}
            self._plot()
        folder.write_summary(summary)

    def _plot(self) -> None:
        title = f"{self.folder.path.name}: {self.engine.global_steps} of {self.plan.steps} steps"
        try:
            write_training_plot(
                self.folder.metrics, self.folder.plot, samples_per_step=self.engine.train_batch_size(), title=title
            )
        except MissingWheelError as error:
            print(f"No plot: {error}")

    def _write_metrics(self) -> None:
        samples = self.engine.global_samples
        events = [(peak_memory(rank), float(peak), samples) for rank, peak in enumerate(self.peaks)]
        events.append(("Train/Samples/tokens_per_s", self.speed.tokens_per_s, samples))
        self.engine.monitor.write_events(events)


class Speed:
    """Tokens per second. Where there are more steps than one, the first is left out: it warms up."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens = tokens_per_step
        self._steps = 0
        self._start_s = time.monotonic()
        self._first_s = self._start_s
        self._last_s = self._start_s

    def count(self) -> None:
        """A step has ended."""
        self._steps += 1
        self._last_s = time.monotonic()
        if self._steps == 1:
            self._first_s = self._last_s

    @property
    def seconds(self) -> float:
        """From the start of the first step to the end of the last."""
        return self._last_s - self._start_s

    @property
    def tokens_per_s(self) -> float:
        """The mean rate so far."""
        steps, since_s = (self._steps - 1, self._first_s) if self._steps > 1 else (self._steps, self._start_s)
        return steps * self._tokens / max(self._last_s - since_s, 1e-9)


if __name__ == "__main__":
    sys.exit(main())
