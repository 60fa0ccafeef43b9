"""What a run is to do: decided from the command line, the config and, where it goes on from one, the checkpoint."""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import Shape
from run_folder import RunFolder, Saved
from text import tokenizer_path
from tokenizers import Tokenizer

from ds_core.config import load
from ds_core.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """One run.

    Args:
        folder: what it writes.
        config: for the engine, with the length of the run and its folder put in.
        steps: length of the run, counted from its very beginning.
        last: the step to end after, `steps` unless asked for less.
        data: the text; None for the built-in one.
        vocabulary: tokens the tokenizer may have.
        saved: what the checkpoint says that the run goes on from, or None for a new run.
        options: the command line, for the rest.
    """

    folder: RunFolder
    config: dict[str, Any]
    steps: int
    last: int
    data: Path | None
    vocabulary: int
    saved: Saved | None
    options: argparse.Namespace

    @property
    def lr(self) -> float:
        """The learning rate of the config.

        Raises:
            ConfigError: it has none.
        """
        try:
            return float(self.config["optimizer"]["params"]["lr"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"{self.options.config} needs a number under optimizer.params.lr") from None

    def tokenizer_file(self, text: str) -> Path:
        """Where the tokenizer of the text is kept.

        Raises:
            ConfigError: the run that is gone on with was trained on another text.
        """
        path = tokenizer_path(self.folder.cache, text, self.vocabulary)
        if self.saved is not None and path.name != self.saved.tokenizer:
            before = self.saved.data or "the reference text of another version of Python"
            raise ConfigError(
                f"{self.folder.path} was trained on another text ({before}), or the text has changed since; "
                "start a run of its own: another --out, without --resume"
            )
        return path

    def shape(self, tokenizer: Tokenizer) -> Shape:
        """Of the model: the checkpoint's, else as the command line says."""
        if self.saved is not None:
            return self.saved.shape
        options = self.options
        return Shape(tokenizer.get_vocab_size(), options.context, options.layers, options.heads, options.width)


def plan(options: argparse.Namespace) -> Plan:
    """The plan.

    Raises:
        ConfigError: the config cannot be used, there is nothing to go on from, or something that nobody mentioned.
    """
    folder = RunFolder(options.out)
    saved = folder.saved()
    if options.resume and saved is None:
        raise ConfigError(f"--resume: there is no checkpoint in {folder.path}; leave --resume out to start a run there")
    if not options.resume and folder.is_used:
        raise ConfigError(f"{folder.path} holds a run already; go on with it (--resume) or name another folder (--out)")
    steps, config = engine_config(options, folder, saved)
    data = options.data or (saved.data if saved is not None else None)
    return Plan(
        folder=folder,
        config=config,
        steps=steps,
        last=min(options.stop_after or steps, steps),
        data=Path(data).resolve() if data is not None else None,
        vocabulary=saved.vocabulary if saved is not None else options.vocabulary,
        saved=saved,
        options=options,
    )


def engine_config(options: argparse.Namespace, folder: RunFolder, saved: Saved | None) -> tuple[int, dict[str, Any]]:
    """The length of the run, and the config for the engine.

    Raises:
        ConfigError: the file cannot be used, or nothing says how long the run is.
    """
    config = copy.deepcopy(dict(load(options.config).tree))
    schedule = config.get("scheduler", {}).get("params", {})
    steps = options.steps or (saved.steps if saved is not None else schedule.get("total_num_steps"))
    if steps is None:
        raise ConfigError(f"{options.config} has no scheduler.params.total_num_steps; say how long to train: --steps N")
    if "total_num_steps" in schedule:
        schedule["total_num_steps"] = steps
        if "warmup_num_steps" in schedule:
            schedule["warmup_num_steps"] = min(schedule["warmup_num_steps"], max(steps // 4, 1))
    for section in ("tensorboard", "jsonl_monitor"):
        if section in config:
            config[section]["output_path"] = str(folder.path)
    return steps, config
