"""`open_source`: opens a checkpoint folder of any known format; plugins add formats by ``ds_checkpoint_formats``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ds_core.checkpoint.source import Source
from ds_core.errors import CheckpointError, did_you_mean
from ds_core.hooks import CheckpointFormatEntry

if TYPE_CHECKING:
    from ds_core.plugins import PluginManager, Provided

__all__ = ["Recognized", "formats", "open_source", "recognize"]

_SHOWN = 12


class Recognized(NamedTuple):
    """A format that a folder is of, and the checkpoint in it: a tag, or ``""`` where the format has no tags."""

    provided: Provided[CheckpointFormatEntry]
    tag: str

    @property
    def format(self) -> str:
        """Name of the format."""
        return self.provided.item.name


def open_source(
    directory: str | Path,
    tag: str | None = None,
    *,
    strict: bool = True,
    format: str | None = None,
    manager: PluginManager | None = None,
) -> Source:
    """The checkpoint `tag` in `directory`, open for reading, whatever its format.

    Args:
        directory: where checkpoints were saved, or a folder of weights.
        tag: default the one that ``latest`` names.
        strict: the source's `strict`: parts should refuse when something of theirs is missing.
        format: name of the format; None asks each format whether the folder is its own.
        manager: plugins to ask; None is the process's.

    Raises:
        CheckpointError: nothing recognized, two formats of equal specificity, or a damaged checkpoint.
    """
    from ds_core.plugins import load_ref

    found = recognize(directory, tag, format=format, manager=manager)
    if found is None:
        raise CheckpointError(_nothing(Path(directory), tag, format, formats(manager)))
    entry = found.provided.item
    source: Source = load_ref(entry.open, found.provided.record)(Path(directory), found.tag, strict)
    return source


def recognize(
    directory: str | Path,
    tag: str | None = None,
    *,
    format: str | None = None,
    manager: PluginManager | None = None,
) -> Recognized | None:
    """The most specific format that recognizes `directory`, or None. Arguments and errors as `open_source`.

    A save of this process into `directory` that is under way is waited for.
    """
    from ds_core.checkpoint.saving.under_way import settle
    from ds_core.plugins import load_ref

    settle(Path(directory))

    known = formats(manager)
    if format is not None:
        chosen = [provided for provided in known if provided.item.name == format]
        if not chosen:
            names = [provided.item.name for provided in known]
            raise CheckpointError(
                f"no checkpoint format {format!r}.{did_you_mean(format, names)} Known: {', '.join(names)}"
            )
        known = chosen
    if not Path(directory).is_dir():
        return None
    matches: list[Recognized] = []
    for provided in known:
        if matches and provided.item.specificity < matches[0].provided.item.specificity:
            break
        found = load_ref(provided.item.detect, provided.record)(Path(directory), tag)
        if found is not None:
            matches.append(Recognized(provided, found))
    if len(matches) > 1:
        told = " and ".join(f"{match.format!r} ({match.provided.origin})" for match in matches)
        raise CheckpointError(
            f"{directory} can be read as {told}; say which with format={matches[0].format!r} "
            f"(`ds checkpoint import --format {matches[0].format}`)"
        )
    return matches[0] if matches else None


def formats(manager: PluginManager | None = None) -> Sequence[Provided[CheckpointFormatEntry]]:
    """All formats that the installed plugins read, the most specific first."""
    if manager is None:
        from ds_core.plugins import manager as process_manager

        manager = process_manager()
    offered = manager.collect("ds_checkpoint_formats")
    return sorted(offered, key=lambda provided: (-provided.item.specificity, provided.item.name))


def _nothing(
    directory: Path, tag: str | None, format: str | None, known: Sequence[Provided[CheckpointFormatEntry]]
) -> str:
    """Why nothing was recognized: what was looked for, and what is there."""
    if not directory.is_dir():
        return f"no checkpoint in {directory}: it is {'no folder' if directory.exists() else 'not there'}"
    looked = "; ".join(f"{p.item.name}: {p.item.summary}" for p in known if format in (None, p.item.name))
    entries = [entry for entry in sorted(directory.glob("[!.]*")) if tag is None or entry.is_dir()]
    names = [entry.name + ("/" if entry.is_dir() else "") for entry in entries]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    there = ", ".join(names[:_SHOWN]) + more if names else "nothing"
    if tag is not None:
        return f"no checkpoint {tag!r} in {directory}; there are: {there} (looked for {looked})"
    return f"no checkpoint in {directory}: looked for {looked}; there is: {there}"
