"""``ds io bench|tune``: how fast a disk moves tensors, and the settings that do it fastest. Imports torch when run."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ds_core.cli._output import write_json, write_line, write_table
from ds_core.errors import ConfigError

if TYPE_CHECKING:
    from ds_core.aio.measure import Bench, Result
    from ds_core.config.aio import AioSection

__all__ = ["app", "size"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Measure a disk as offload uses it, find its best settings."
)

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_COLUMNS = ("job", "by", "block", "depth", "parallel", "GB/s", "lowest", "highest")

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder on the disk; nothing is left in it.")]
EngineOption = Annotated[str, typer.Option("--engine", help="auto (what a job would get), uring or threads.")]
SizeOption = Annotated[str, typer.Option("--size", "--io_size", help="Bytes to move, like 400M or 1G.")]
ReadOption = Annotated[bool, typer.Option("--read/--no-read", "--read/--no_read", help="Measure reads.")]
WriteOption = Annotated[bool, typer.Option("--write/--no-write", "--write/--no_write", help="Measure writes.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@app.command()
def bench(
    folder: FolderArgument,
    nbytes: SizeOption = "1G",
    block: Annotated[str, typer.Option("--block-size", "--block_size", help="Bytes moved at a time.")] = "1M",
    depth: Annotated[int, typer.Option("--queue-depth", "--queue_depth", help="Blocks under way in each part.")] = 8,
    parallel: Annotated[int, typer.Option("--parallel", "--io_parallel", help="Parts moved at the same time.")] = 1,
    single_submit: Annotated[
        bool, typer.Option("--single-submit", "--single_submit", help="Submit each block by a call of its own.")
    ] = False,
    overlap: Annotated[
        bool, typer.Option("--overlap-events/--no-overlap-events", help="Start a block as soon as another ends.")
    ] = True,
    engine: EngineOption = "auto",
    read: ReadOption = True,
    write: WriteOption = True,
    loops: Annotated[int, typer.Option("--loops", min=1, help="Timed repetitions of each.")] = 3,
    validate: Annotated[bool, typer.Option("--validate", help="Compare what is read with what was written.")] = False,
    compare_fio: Annotated[
        bool, typer.Option("--compare-fio", help="Let fio take turns, with the same file, blocks and depth.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Time reads and writes of one tensor in FOLDER, past the page cache where its file system allows."""
    from ds_core.aio.measure import measure

    section = _section(
        size(block, "--block-size"), depth, parallel, single_submit=single_submit, overlap_events=overlap
    )
    found = measure(_bench(folder, nbytes, section, engine, read, write, loops, validate, compare_fio))
    shares = _shares(found)
    if as_json:
        write_json({"results": [result.to_dict() for result in found], "ours_by_fio": shares})
        return
    write_table(_COLUMNS, [_row(result) for result in found])
    for job, share in shares.items():
        write_line(f"{job}: {share:.2f} times fio's rate")
    _remark(found)


@app.command()
def tune(
    folder: FolderArgument,
    nbytes: SizeOption = "400M",
    blocks: Annotated[str, typer.Option("--block-sizes", help="Sizes to try.")] = "256K,1M,4M",
    depths: Annotated[str, typer.Option("--queue-depths", help="Depths to try.")] = "4,16,64",
    parallels: Annotated[str, typer.Option("--parallels", help="Numbers of parts to try.")] = "1,2,4",
    engine: EngineOption = "auto",
    read: ReadOption = True,
    write: WriteOption = True,
    loops: Annotated[int, typer.Option("--loops", min=1, help="Timed repetitions of each.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Write the section to this new JSON file.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Put the section into this JSON config; the old text is kept.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Try settings of the aio section in FOLDER, and say, or write down, the best."""
    from ds_core.aio.measure import best, sweep
    from ds_core.aio.settings_file import merge_section, write_section

    sections = [
        _section(block, depth, parallel)
        for block, depth, parallel in itertools.product(
            (size(word, "--block-sizes") for word in _words(blocks)),
            (_count(word, "--queue-depths") for word in _words(depths)),
            (_count(word, "--parallels") for word in _words(parallels)),
        )
    ]
    if not sections:
        raise ConfigError("--block-sizes, --queue-depths and --parallels need at least one value each")
    if out is not None and out.exists():  # before the minutes that measuring takes
        raise ConfigError(f"{out} exists; merge into it with --config {out}, or name a new file")

    def told(result: Result) -> None:
        sys.stderr.write("  ".join(_row(result)) + "\n")

    found = sweep(_bench(folder, nbytes, sections[0], engine, read, write, loops, False, False), sections, told)
    chosen = best(found)
    keys = ("block_size", "queue_depth", "intra_op_parallelism")
    values = {key: getattr(chosen, key) for key in keys}
    if as_json:
        write_json({"results": [result.to_dict() for result in found], "aio": values})
    else:
        write_table(_COLUMNS, [_row(result) for result in found])
        write_line('best: "aio": {' + ", ".join(f'"{key}": {value}' for key, value in values.items()) + "}")
        _remark(found)
    if out is not None:
        write_section(out, values)
    if config is not None:
        sys.stderr.write(f"ds io: {config} has the section; the old text is in {merge_section(config, values)}\n")


def size(text: str, option: str) -> int:
    """Bytes of a number with an optional unit of 1024: 4096, 256K, 1M, 2G.

    Raises:
        ConfigError: it is something else.
    """
    word = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = word[-1:] if word[-1:] in _UNITS else ""
    number = word.removesuffix(unit)
    if not number.isascii() or not number.isdigit():
        raise ConfigError(f"{option} takes bytes like 4096, 256K, 1M or 2G, got {text!r}")
    return int(number) * _UNITS[unit]


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word.strip()]


def _count(text: str, option: str) -> int:
    if not text.strip().isdigit():
        raise ConfigError(f"{option} takes whole numbers with commas between them, got {text!r}")
    return int(text)


def _section(block: int, depth: int, parallel: int, **more: Any) -> AioSection:
    from ds_core.config import Facts, load, resolve

    keys = {"block_size": block, "queue_depth": depth, "intra_op_parallelism": parallel, **more}
    section: AioSection = resolve(load({"train_batch_size": 1, "aio": keys}, sections=()), Facts(1, 1))["aio"]
    return section


def _bench(
    folder: Path, nbytes: str, section: AioSection, engine: str, read: bool, write: bool, loops: int, *flags: bool
) -> Bench:
    from ds_core.aio.measure import JOBS, Bench

    jobs = tuple(job for job, wanted in zip(JOBS, (write, read), strict=True) if wanted)
    if not jobs:
        raise ConfigError("--no-read and --no-write leave nothing to measure")
    asked = size(nbytes, "--size")
    if asked < 1:
        raise ConfigError(f"--size must be at least 1 byte, got {nbytes}")
    validate, with_fio = flags
    return Bench(folder, asked, section, engine, jobs, loops, validate, with_fio)


def _row(result: Result) -> tuple[str, ...]:
    rates = [result.nbytes / seconds / 1e9 for seconds in result.seconds]
    section = result.section
    settings = (_short(section.block_size), str(section.queue_depth), str(section.intra_op_parallelism))
    return (result.job, result.by, *settings, *(f"{rate:.3f}" for rate in (result.rate, min(rates), max(rates))))


def _short(nbytes: int) -> str:
    for unit in ("G", "M", "K"):
        if nbytes % _UNITS[unit] == 0:
            return f"{nbytes // _UNITS[unit]}{unit}"
    return str(nbytes)


def _shares(results: list[Result]) -> dict[str, float]:
    fio = {result.job: result.rate for result in results if result.by == "fio"}
    return {r.job: round(r.rate / fio[r.job], 3) for r in results if r.by != "fio" and r.job in fio}


def _remark(results: list[Result]) -> None:
    if not all(result.is_direct for result in results):
        write_line("this file system does not take O_DIRECT: what was measured is the page cache as well as the disk")
