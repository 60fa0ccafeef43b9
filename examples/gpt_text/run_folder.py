"""Where a run keeps what it writes, and what a checkpoint says about the run it belongs to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model import Shape

from ds_core.checkpoint import CheckpointReader, newest


@dataclass(frozen=True)
class Saved:
    """What it takes to go on with a run or to let its model write; kept in a checkpoint as client state.

    Args:
        shape: of the model.
        tokenizer: file name below ``cache/``.
        vocabulary: tokens that were asked for; a short text may have given fewer.
        data: the text's file; None for the built-in text.
        steps: length the run was meant to have.
    """

    shape: Shape
    tokenizer: str
    vocabulary: int
    data: str | None
    steps: int

    def to_json(self) -> dict[str, Any]:
        """As client state."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Saved:
        """From client state."""
        return cls(**{**state, "shape": Shape(**state["shape"])})


class RunFolder:
    """Paths below one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.cache = path / "cache"
        self.metrics = path / "metrics" / "events.jsonl"
        self.tensorboard = path / "tensorboard"
        self.plot = path / "training.png"
        self.summary = path / "summary.json"
        self.sample = path / "sample.txt"

    @property
    def is_used(self) -> bool:
        """Whether a run has written here."""
        return self.metrics.exists() or self.checkpoint() is not None

    def checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        tag = newest(self.checkpoints)
        return None if tag is None else self.checkpoints / tag

    def saved(self) -> Saved | None:
        """What the newest checkpoint says about the run, or None where there is no checkpoint."""
        path = self.checkpoint()
        return None if path is None else Saved.from_json(CheckpointReader(path).client_state)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replaces the summary."""
        self.summary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    def read_summary(self) -> dict[str, Any]:
        """What `write_summary` wrote."""
        summary: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        return summary
