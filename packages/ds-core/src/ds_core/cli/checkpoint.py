"""``ds checkpoint ls|show|verify|export|import|diff|prune``: checkpoints of any format, looked at and written anew.

Exit codes: 0 nothing is wrong; 1 damage or a difference was found; 2 a wrong call, or what is asked for is not there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ds_core.cli._checkpoint_convert import (
    FOUND,
    FolderArgument,
    FormatOption,
    JsonOption,
    PatternOption,
    TagArgument,
    diff,
    export,
    import_,
)
from ds_core.cli._output import write_json, write_line
from ds_core.cli._progress import human_bytes, progress
from ds_core.errors import CheckpointError

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="List, check, convert, compare and delete checkpoints."
)


@app.command("ls")
def list_checkpoints(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """List the checkpoints in DIR, of whatever format, and what interrupted saves left behind."""
    from ds_core.checkpoint.manage.catalog import catalog, split_tag
    from ds_core.cli._checkpoint_text import write_catalog

    found = catalog(*split_tag(folder, None))
    if as_json:
        write_json(found.to_dict())
    else:
        write_catalog(folder, found)


@app.command()
def show(
    folder: FolderArgument,
    tag: TagArgument = None,
    pattern: PatternOption = None,
    format_name: FormatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a checkpoint says of itself: counters, mesh, plan, values, tensors."""
    from ds_core.checkpoint.manage.catalog import split_tag
    from ds_core.checkpoint.manage.describe import describe
    from ds_core.checkpoint.sources import open_source
    from ds_core.cli._checkpoint_text import write_description

    root, name = split_tag(folder, tag)
    source = open_source(root, name, format=format_name)
    try:
        told = describe(source, pattern)
    finally:
        source.close()
    if as_json:
        write_json(told)
    else:
        write_description(told)


@app.command()
def verify(
    folder: FolderArgument,
    tag: TagArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="Check every checkpoint in DIR.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of a checkpoint and name each file that is not what was written."""
    from ds_core.checkpoint.manage.audit import audit, audited_bytes
    from ds_core.checkpoint.manage.catalog import UNKNOWN, catalog, split_tag

    if everything and tag is not None:
        raise CheckpointError(f"verify takes a tag or --all, got {tag!r} and --all")
    root, name = split_tag(folder, tag)
    names = [row.tag for row in catalog(root).checkpoints if row.state != UNKNOWN] if everything else [_tag(root, name)]
    if not names:
        raise CheckpointError(f"no checkpoint in {root}")
    found = []
    for each in names:
        with progress(each, audited_bytes(root, each)) as told:
            found.append(audit(root, each, told))
        if not as_json:
            one = found[-1]
            state = "damaged" if one.damages else f"ok, {one.files} files, {human_bytes(one.nbytes)}"
            write_line(f"{each or root}: {state}")
            for damage in one.damages:
                write_line(f"  {damage.file}: {damage.reason}")
    if as_json:
        rows = [{**one._asdict(), "damages": [damage._asdict() for damage in one.damages]} for one in found]
        write_json({"checkpoints": rows, "ok": not any(one.damages for one in found)})
    if any(one.damages for one in found):
        raise typer.Exit(FOUND)


app.command()(export)
app.command("import")(import_)
app.command()(diff)


@app.command()
def prune(
    folder: FolderArgument,
    keep_last: Annotated[int | None, typer.Option("--keep-last", min=1, help="Newest checkpoints to keep.")] = None,
    keep_every: Annotated[
        int | None, typer.Option("--keep-every", min=1, help="Keep those of every so many steps as well.")
    ] = None,
    remove_leftovers: Annotated[
        bool, typer.Option("--leftovers", help="Delete what interrupted saves left behind.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing, say what would be.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete older checkpoints; never the latest, nor one that is being written."""
    from ds_core.checkpoint.manage.tidy import tidy

    if keep_last is None and (keep_every is not None or not remove_leftovers):
        raise CheckpointError("prune needs --keep-last N (the number of newest checkpoints to keep), or --leftovers")
    done = tidy(folder, keep_last, keep_every, remove_leftovers=remove_leftovers, dry_run=dry_run)
    if as_json:
        write_json({**done._asdict(), "dry_run": dry_run})
        return
    verb = "would delete" if dry_run else "deleted"
    for name in done.deleted:
        write_line(f"{verb} {name}")
    for name in done.restored:
        write_line(f"{'would restore' if dry_run else 'restored'} {name}, which was being replaced")
    for name, reason in done.left.items():
        write_line(f"left {name}: {reason}")
    write_line(f"{verb} {len(done.deleted)}, {human_bytes(done.nbytes)}")


def _tag(root: Path, tag: str | None) -> str:
    """The tag to look at; ``""`` for a folder of a format without tags."""
    from ds_core.checkpoint.sources import open_source, recognize
    from ds_core.checkpoint.storage.folder import newest

    found = tag or newest(root)
    if found is None:
        recognized = recognize(root)
        if recognized is None:
            open_source(root)  # says what was looked for
        found = recognized.tag if recognized is not None else ""
    return found
