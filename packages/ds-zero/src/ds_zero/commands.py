"""``ds plan``: what a job will take of memory and send each step, before any rank is started."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ds_zero.estimate import Estimate
    from ds_zero.estimate.fit import Change

__all__ = ["app"]

app = typer.Typer(add_completion=False)

NOT_COUNTED = "not counted: activations (--activations BYTES), workspace of kernels, what the allocator keeps"


@app.command()
def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="JSON or HJSON file, or base64 of one.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="SPEC",
            help="package.module:callable; a Hugging Face config.json; gpt:layers=96,dim=12288,vocab=50257,heads=96; "
            "or params:70e9,largest=1e9.",
        ),
    ],
    world: Annotated[int, typer.Option("--world", min=1, help="Ranks of the job; none is started.")],
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=0, help="The rank to plan for; left out, the fullest of a divided model."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, in bytes.")] = False,
    units: Annotated[bool, typer.Option("--units", help="List what is gathered and released together.")] = False,
    activations: Annotated[
        str, typer.Option("--activations", metavar="BYTES", help="What activations take on a device, like 12e9.")
    ] = "0",
    device_memory: Annotated[
        str | None,
        typer.Option("--device-memory", metavar="BYTES", help="Memory of a device, like 80e9: say whether it fits."),
    ] = None,
) -> None:
    """Say what a job takes of memory, by kind, and what it sends in a step, from the layouts it would run with."""
    from ds_core.config import load
    from ds_zero.estimate import estimate
    from ds_zero.estimate.fit import other_stages, smallest_change
    from ds_zero.estimate.models import count, model_of
    from ds_zero.estimate.text import size

    options: dict[str, Any] = {"activation_bytes": count(activations, "--activations")}
    limit = None if device_memory is None else count(device_memory, "--device-memory")
    raw = load(config)
    made = model_of(model)
    found = estimate(made, raw, world, rank=rank or 0, **options)
    places = _places(found, made, raw, **options)
    if rank is None and places:
        found = max(places, key=lambda one: one.peak_bytes)
    options["rank"] = found.rank
    others = other_stages(made, raw, world, found.stage, **options)
    change = None
    if limit is not None and found.peak_bytes > limit:
        change = smallest_change(made, raw, world, found.stage, limit, **options)
    if as_json:
        typer.echo(json.dumps(_json(found, others, limit, change, units), indent=2))
        return
    _show(found, model, units)
    typer.echo()
    if places:
        rows = [
            (str(one.rank), _at(one), f"{one.numel:,}", size(one.bytes_of()), size(one.peak_bytes)) for one in places
        ]
        _table(("rank", "place", "parameters", "held", "device peak"), rows, right=(0, 2, 3, 4))
        typer.echo()
    _table(
        ("other settings", "held", "device peak", "sent a step"), [_other(other) for other in others], right=(1, 2, 3)
    )
    if limit is not None:
        typer.echo(f"\n{_verdict(found, limit, change)}")


def _places(found: Estimate, model: Any, raw: Any, **options: Any) -> list[Estimate]:
    """One rank of each place in the mesh that the model is divided over; none where it is whole everywhere."""
    from ds_zero.estimate import estimate
    from ds_zero.estimate.setup import set_up

    if not found.place:
        return []
    mesh = set_up(model, raw, found.world).mesh
    firsts: dict[tuple[tuple[str, int], ...], int] = {}
    for rank in range(found.world):
        firsts.setdefault(tuple((name, mesh.coords(rank)[name]) for name in found.place), rank)
    return [estimate(model, raw, found.world, rank=rank, **options) for rank in firsts.values()]


def _at(found: Estimate) -> str:
    return ", ".join(f"{name} {at}" for name, at in found.place.items())


def _show(found: Estimate, model: str, units: bool) -> None:
    from ds_zero.estimate.text import size

    per = max(found.trainable_numel, 1)
    whose = f"rank {found.rank} ({_at(found)}) keeps {found.numel:,}" if found.place else f"{found.numel:,}"
    title = f"{model} at stage {found.stage}: {whose} parameters on {found.ranks:,} data-parallel ranks"
    rows = [
        (
            row.kind,
            row.place,
            size(row.bytes),
            f"{row.bytes / per:.4g}",
            size(row.padding_bytes) if row.padding_bytes else "",
        )
        for row in found.held
    ]
    total = found.bytes_of()
    rows.append(("held in all", "", size(total), f"{total / per:.4g}", size(found.padding_bytes)))
    rows += [(f"{row.kind}, at most", row.place, size(row.bytes), "", "") for row in found.passing]
    if found.activation_bytes:
        rows.append(("activations, as given", "device", size(found.activation_bytes), "", ""))
    rows.append(("device peak, at most", "device", size(found.peak_bytes), "", ""))
    _table(("on each rank", "where", "bytes", "a parameter", "padding"), rows, right=(2, 3, 4), title=title)
    if not found.activation_bytes:
        typer.echo(NOT_COUNTED)
    if found.place:
        typer.echo("not counted: what is sent, where ranks divide the model")
        return
    typer.echo()
    sent = [(row.kind, row.op, f"{row.calls:,}", size(row.sent_bytes)) for row in found.sent]
    sent.append(("sent in all", "", f"{sum(row.calls for row in found.sent):,}", size(found.sent_bytes)))
    title = f"one step of {found.accumulation} micro-batches" if found.accumulation > 1 else "one step"
    _table((title, "collective", "calls", "sent by each rank"), sent, right=(2, 3))
    if units:
        typer.echo()
        listed = [
            (u.title, str(u.parameters), f"{u.numel:,}", "whole" if u.is_whole else "in shards") for u in found.units
        ]
        _table(("unit", "parameters", "elements", "kept"), listed, right=(1, 2))


def _other(change: Change) -> tuple[str, str, str, str]:
    from ds_zero.estimate.text import size

    if change.estimate is None:
        return change.what, "refused", change.refusal, ""
    found = change.estimate
    sent = "not counted" if found.place else size(found.sent_bytes)
    return change.what, size(found.bytes_of()), size(found.peak_bytes), sent


def _verdict(found: Estimate, limit: int, change: Change | None) -> str:
    from ds_zero.estimate.text import size

    peak = found.peak_bytes
    if peak <= limit:
        return f"fits: {size(peak)} of {size(limit)}, {size(limit - peak)} left"
    text = f"does not fit: {size(peak)} of {size(limit)}, {size(peak - limit)} too much"
    if change is None or change.estimate is None:
        return f"{text}; no stage, offload or number of ranks up to 65536 makes it fit"
    return f"{text}; smallest change that fits: {change.what}, which takes {size(change.estimate.peak_bytes)}"


def _json(
    found: Estimate, others: list[Change], limit: int | None, change: Change | None, units: bool
) -> dict[str, Any]:
    def totals(one: Estimate | None) -> dict[str, int] | None:
        if one is None:
            return None
        return {"held_bytes": one.bytes_of(), "device_peak_bytes": one.peak_bytes, "sent_bytes": one.sent_bytes}

    value = asdict(found)
    if not units:
        value.pop("units")
    value["totals"] = totals(found)
    value["others"] = [{"what": o.what, "totals": totals(o.estimate), "refusal": o.refusal} for o in others]
    if limit is not None:
        value["device_bytes"] = limit
        value["fits"] = found.peak_bytes <= limit
        value["change"] = None if change is None else {"what": change.what, "totals": totals(change.estimate)}
    return value


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int], title: str = "") -> None:
    """Drawn for a terminal, plain columns for everything else."""
    from ds_zero.estimate.text import table

    if not sys.stdout.isatty():
        typer.echo(f"# {title}\n" * bool(title) + table([columns, *rows], right))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left")
    for place, column in enumerate(columns):
        drawn.add_column(column, overflow="fold", justify="right" if place in right else "left")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)
