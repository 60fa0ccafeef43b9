"""The subcommands of ``ds checkpoint`` that read tensors: export, import, diff; and the options all of them share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ds_core.cli._output import write_json, write_line
from ds_core.cli._progress import human_bytes, progress
from ds_core.errors import CheckpointError

__all__ = [
    "FOUND",
    "FolderArgument",
    "FormatOption",
    "JsonOption",
    "PatternOption",
    "TagArgument",
    "diff",
    "export",
    "import_",
]

FOUND = 1
"""Exit code where something is damaged or differs."""


class Dtype(str, Enum):
    """What floating-point weights are written as."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    keep = "keep"


FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A folder of checkpoints, or one checkpoint.")]
TagArgument = Annotated[str | None, typer.Argument(metavar="TAG", help="Which one; the newest when not given.")]
TagOption = Annotated[str | None, typer.Option("-t", "--tag", help="Which checkpoint; the newest when not given.")]
PatternOption = Annotated[str | None, typer.Option("--tensors", help="Tensors by name, like 'optimizer/*/head.*'.")]
FormatOption = Annotated[str | None, typer.Option("--format", help="Format of what is read, if it can be several.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def export(
    folder: FolderArgument,
    names: Annotated[list[str], typer.Argument(metavar="[TAG] OUT", help="Which one, and the folder to write.")],
    tag_option: TagOption = None,
    hugging_face: Annotated[bool, typer.Option("--hf", help="A Hugging Face folder, which it is anyway.")] = True,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Of floating-point weights.")] = Dtype.fp32,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", "--max_shard_size", help="Bytes in a file, like 5GB.")
    ] = "5GB",
    exclude_frozen: Annotated[
        bool, typer.Option("--exclude-frozen", "--exclude_frozen_parameters", help="Leave out what is not trained.")
    ] = False,
    config_from: Annotated[
        Path | None, typer.Option("--config-from", help="A model's folder whose config and tokenizer are copied.")
    ] = None,
    format_name: FormatOption = None,
    safe_serialization: Annotated[
        bool, typer.Option("--safe-serialization", "--safe_serialization", help="safetensors, which it is anyway.")
    ] = True,
) -> None:
    """Write the weights as safetensors that transformers loads; in fp32 from the master weights by default.

    Streams: memory is a block of one tensor. The files appear in OUT when all are written and durable.
    """
    import torch

    from ds_core.checkpoint.manage.catalog import split_tag
    from ds_core.checkpoint.sources import open_source
    from ds_core.checkpoint.weights.export import export_weights, exported_bytes

    if len(names) > 2 or (len(names) == 2 and tag_option is not None):
        raise CheckpointError(f"export takes DIR [TAG] OUT, got {len(names)} names after DIR")
    root, tag = split_tag(folder, names[0] if len(names) == 2 else tag_option)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype.value)
    source = open_source(root, tag, format=format_name)
    try:
        with progress("export", exported_bytes(source, wanted, exclude_frozen=exclude_frozen)) as told:
            plan = export_weights(
                source,
                Path(names[-1]),
                dtype=wanted,
                max_shard_size=max_shard_size,
                exclude_frozen=exclude_frozen,
                config_from=config_from,
                told=told,
            )
    finally:
        source.close()
    count = sum(len(entries) for entries in plan.files.values())
    files = f"{len(plan.files)} files" if len(plan.files) > 1 else next(iter(plan.files))
    write_line(f"{names[-1]}: {count} tensors, {human_bytes(plan.total_bytes)}, {files}")


def import_(
    folder: Annotated[Path, typer.Argument(metavar="SRC", help="A checkpoint, or a folder of them, of any format.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder of checkpoints to write to.")],
    source_tag: Annotated[str | None, typer.Option("--source-tag", help="Which one of SRC; the newest.")] = None,
    tag: Annotated[str | None, typer.Option("-t", "--tag", help="The new one's; as in SRC, or 'imported'.")] = None,
    format_name: FormatOption = None,
    latest: Annotated[bool, typer.Option("--latest/--no-latest", help="Let 'latest' name it.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint of that tag.")] = False,
) -> None:
    """Write a checkpoint of another format (or this one) as one of this project's, without an engine."""
    from ds_core.checkpoint.manage.catalog import split_tag
    from ds_core.checkpoint.manage.convert import source_bytes, write_source
    from ds_core.checkpoint.sources import open_source, recognize

    root, name = split_tag(folder, source_tag)
    source = open_source(root, name, format=format_name)
    try:
        recognized = recognize(root, name, format=format_name)
        given = tag or (recognized.tag if recognized is not None else "") or "imported"
        with progress("import", source_bytes(source)) as told:
            path = write_source(source, target, given, save_latest=latest, overwrite=overwrite, told=told)
        write_line(f"{path}: {len(source.keys())} tensors, {human_bytes(source_bytes(source))}, from {source.format}")
    finally:
        source.close()


def diff(
    left: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint, or a folder of them.")],
    right: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    tag_a: Annotated[str | None, typer.Option("--tag-a", help="Which one of A; the newest when not given.")] = None,
    tag_b: Annotated[str | None, typer.Option("--tag-b", help="Which one of B; the newest when not given.")] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0.0, help="Absolute; 0 compares bits.")] = 0.0,
    pattern: PatternOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two checkpoints of any formats: tensors, counters, values. With --tensors nothing but those."""
    from ds_core.checkpoint.manage.catalog import split_tag
    from ds_core.checkpoint.manage.compare import common_bytes, compare
    from ds_core.checkpoint.sources import open_source
    from ds_core.cli._checkpoint_text import write_difference

    one = open_source(*split_tag(left, tag_a))
    try:
        other = open_source(*split_tag(right, tag_b))
        try:
            with progress("compare", common_bytes(one, other, pattern)) as told:
                found = compare(one, other, pattern=pattern, tolerance=tolerance, told=told)
        finally:
            other.close()
    finally:
        one.close()
    if as_json:
        write_json(found.to_dict())
    else:
        write_difference(found)
    if found:
        raise typer.Exit(FOUND)
