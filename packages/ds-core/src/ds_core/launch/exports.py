"""Which environment variables go along to other machines: known prefixes, and what a file of the user's says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ds_core.errors import LaunchError

__all__ = ["PREFIXES", "exported", "read_environment_file"]

PREFIXES = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL", "GLOO")
"""Beginnings of names that go along in every job; an accelerator adds its own."""


def exported(environ: Mapping[str, str], prefixes: Iterable[str] = ()) -> dict[str, str]:
    """The variables whose names begin with one of `PREFIXES` or `prefixes`."""
    known = (*PREFIXES, *prefixes)
    return {name: value for name, value in environ.items() if name.startswith(known)}


def read_environment_file(name: str, folders: Iterable[Path]) -> dict[str, str]:
    """What the ``NAME=VALUE`` lines of the files called `name` say; later folders win, ``#`` starts a comment line.

    Raises:
        LaunchError: a line is something else.
    """
    found: dict[str, str] = {}
    for path in dict.fromkeys(folder / name for folder in folders):
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            variable, equals, value = text.partition("=")
            if not equals or not variable.strip().isidentifier():
                raise LaunchError(f"{path}, line {number}: a line is NAME=VALUE, got {text!r}")
            found[variable.strip()] = value.strip()
    return found
