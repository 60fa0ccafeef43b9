"""Every error ds-core raises on purpose, as one small tree.

    DsError
    ├── ConfigError (ValueError)            a config value, key or combination that cannot be used
    │   ├── BatchSizeError                  the batch triple does not multiply out
    │   └── MissingWheelError               a config or argument asks for a wheel that is not installed
    ├── PluginError (RuntimeError)          a plugin that cannot be loaded, or does not fit
    │   ├── PluginConflictError             two wheels claim one name
    │   └── UnknownPluginError              a name that matches no installed plugin
    ├── AcceleratorError (RuntimeError)     a device that was asked for and cannot be used
    │   └── AcceleratorFallbackError        the CPU would be used although an accelerator is installed
    ├── EngineError (RuntimeError)          the engine is driven in an order it cannot serve
    │   └── NonFiniteError                  loss or gradients stay NaN or infinite
    ├── ModelError (ValueError)             a model or optimizer the engine cannot take
    ├── CommError (RuntimeError)            process-group set-up or a collective failed
    ├── CheckpointError (RuntimeError)      a checkpoint cannot be written, found or trusted
    ├── OffloadError (RuntimeError)         offloaded tensors cannot be written to, kept in or read from files
    ├── OpError (ValueError)                an op was called with arguments it does not take
    ├── LaunchError (RuntimeError)          ranks could not be started, or one of them died
    └── DataError (ValueError)              a data set or loader state that cannot be used

`Preempted` (SystemExit) is no error: a signal asked the job to end, and it ended with its state on disk.

Messages say what is wrong, the value, what is allowed, and what to change.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

__all__ = [
    "AcceleratorError",
    "AcceleratorFallbackError",
    "BatchSizeError",
    "CheckpointError",
    "CommError",
    "ConfigError",
    "DataError",
    "DsError",
    "EngineError",
    "LaunchError",
    "MissingWheelError",
    "ModelError",
    "NonFiniteError",
    "OffloadError",
    "OpError",
    "PluginConflictError",
    "PluginError",
    "Preempted",
    "UnknownPluginError",
    "did_you_mean",
    "listed",
    "nearest",
]


class DsError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(DsError, ValueError):
    """A config value, key or combination cannot be used."""


class BatchSizeError(ConfigError):
    """train_batch_size is not micro-batch x accumulation x data-parallel ranks."""


class MissingWheelError(ConfigError):
    """What was asked for lives in a wheel that is not installed; the message has the pip command."""


class PluginError(DsError, RuntimeError):
    """A plugin cannot be loaded or does not fit this ds-core."""


class PluginConflictError(PluginError):
    """Two installed wheels claim the same name; the message says how to choose."""


class UnknownPluginError(PluginError):
    """A plugin name (argument, config or environment) matches nothing installed."""


class AcceleratorError(DsError, RuntimeError):
    """The accelerator that was asked for cannot be used here."""


class AcceleratorFallbackError(AcceleratorError):
    """Only the CPU is left although an accelerator wheel or its hardware is present."""


class EngineError(DsError, RuntimeError):
    """The engine was driven in an order it cannot serve."""


class NonFiniteError(EngineError):
    """Loss or gradients stayed NaN or infinite for too many steps."""


class ModelError(DsError, ValueError):
    """The model or optimizer handed in cannot be trained as it is."""


class CommError(DsError, RuntimeError):
    """Process groups could not be set up, or a collective failed."""


class CheckpointError(DsError, RuntimeError):
    """A checkpoint cannot be written, found, or trusted."""


class OffloadError(DsError, RuntimeError):
    """Offloaded tensors cannot be written to, kept in, or read back from files."""


class OpError(DsError, ValueError):
    """An op was called with arguments it does not take."""


class LaunchError(DsError, RuntimeError):
    """Ranks could not be started, or one of them died."""


class DataError(DsError, ValueError):
    """A data set or a loader state cannot be used."""


class Preempted(SystemExit):
    """A signal asked the job to end, and its state is on disk: start the job again to go on.

    Raised by ``engine.step()`` on all ranks at the same step. Uncaught it ends the process without a traceback, with
    exit code 75: ``EX_TEMPFAIL`` of sysexits.h, "try again later", which no other way to end has.

    Attributes:
        path: the checkpoint.
        signal: what was received, on any rank.
    """

    exit_code: ClassVar[int] = 75

    def __init__(self, path: Path, number: signal.Signals) -> None:
        super().__init__(self.exit_code)
        self.path: Path = path
        self.signal: signal.Signals = number

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}, with the state in {self.path}"

    def __reduce__(self) -> tuple[type[Preempted], tuple[Path, signal.Signals]]:
        return type(self), (self.path, self.signal)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' with a leading space, or an empty string; made to be appended to a message."""
    close = nearest(name, known)
    return f" Did you mean {close!r}?" if close else ""


def listed(names: Sequence[str], others: Iterable[str] = (), owner: str = "") -> str:
    """``'a', 'b' (the checkpoint has 'bb') and 3 more``: the nearest of `others`, which `owner` has."""
    known, shown = list(others), 6

    def told(name: str) -> str:
        close = nearest(name, known)
        return f"{name!r} ({owner} has {close!r})" if close else repr(name)

    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(told(name) for name in names[:shown]) + more
