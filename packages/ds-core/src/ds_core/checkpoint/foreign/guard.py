"""Turns what a file of an unexpected structure makes Python raise into one error that names the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ds_core.errors import CheckpointError

__all__ = ["understood"]


@contextmanager
def understood(path: Path, format: str) -> Iterator[None]:
    """Within it, the files of `path` are taken apart on the assumption that they are of `format`.

    Raises:
        CheckpointError: they are not: an entry is missing, or of another type than it should be.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not laid out as a checkpoint of format {format!r} is ({type(error).__name__}: "
            f"{str(error)[:200]}); it is damaged, or of a version that is not known here"
        ) from error
