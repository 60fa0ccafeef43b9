"""Which machines and devices a job uses: host files, and what is included or excluded of them. Starts nothing.

A host file has a line ``host slots=N`` for each machine; text after ``#`` is a comment. A filter is
``host:0,1@other``: machines separated by ``@``, each with its device numbers or, without, all of them.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ds_core.errors import LaunchError

__all__ = [
    "encode_world_info",
    "fetch_hostfile",
    "parse_hostfile",
    "parse_inclusion_exclusion",
    "parse_resource_filter",
    "read_hostfile",
]

_LINE = re.compile(r"(?P<host>\S+)\s+slots=(?P<slots>\d+)")


def fetch_hostfile(hostfile_path: str | Path) -> dict[str, int] | None:
    """Slots by machine, in the file's order; None where there is no such file.

    Raises:
        LaunchError: a line is not ``host slots=N``, a machine is named twice, or there is none.
    """
    path = Path(hostfile_path)
    if not path.is_file():
        return None
    return parse_hostfile(path.read_text(encoding="utf-8").splitlines(), str(path))


def read_hostfile(hostfile_path: str | Path) -> dict[str, int]:
    """As `fetch_hostfile`, of a file that has to be there.

    Raises:
        LaunchError: it is not, or as `fetch_hostfile`.
    """
    found = fetch_hostfile(hostfile_path)
    if found is None:
        raise LaunchError(f"--hostfile {hostfile_path}: there is no such file")
    return found


def parse_hostfile(lines: Sequence[str], label: str = "the host file") -> dict[str, int]:
    """As `fetch_hostfile`, of lines."""
    found: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise LaunchError(f"{label}, line {number}: a line is `host slots=N`, got {line.strip()!r}")
        host = match["host"]
        if host in found:
            raise LaunchError(f"{label}, line {number}: machine {host!r} is there twice; give it one line")
        found[host] = int(match["slots"])
    if not found:
        raise LaunchError(f"{label} names no machine; write a line `host slots=N` for each")
    return found


def parse_inclusion_exclusion(resource_pool: Mapping[str, int], inclusion: str, exclusion: str) -> dict[str, list[int]]:
    """Device numbers by machine, of a pool that is given as slots; see `parse_resource_filter`."""
    pool = {host: list(range(slots)) for host, slots in resource_pool.items()}
    return parse_resource_filter(pool, include_str=inclusion, exclude_str=exclusion)


def parse_resource_filter(
    host_info: Mapping[str, Sequence[int]], include_str: str = "", exclude_str: str = ""
) -> dict[str, list[int]]:
    """What is left of the machines and devices, in their order.

    Raises:
        LaunchError: both filters, or one that names what is not there, or nothing is left.
    """
    if include_str and exclude_str:
        raise LaunchError("--include and --exclude exclude each other; give one of them")
    if not include_str and not exclude_str:
        return {host: list(slots) for host, slots in host_info.items()}
    named = _named(include_str or exclude_str, host_info)
    left = {}
    for host, slots in host_info.items():
        picked = named.get(host, [])
        kept = [slot for slot in slots if (slot in picked) == bool(include_str)]
        if kept:
            left[host] = kept
    if not left:
        raise LaunchError(f"--exclude {exclude_str} leaves no device; exclude less")
    return left


def _named(text: str, host_info: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for item in text.split("@"):
        host, colon, numbers = item.strip().partition(":")
        if host not in host_info:
            raise LaunchError(f"there is no machine {host!r} in {item!r}; there are {', '.join(host_info)}")
        try:
            slots = [int(number) for number in numbers.split(",")] if colon else list(host_info[host])
        except ValueError:
            raise LaunchError(f"devices are numbers separated by commas, got {item!r}") from None
        for slot in slots:
            if slot not in host_info[host]:
                raise LaunchError(f"{host} has no device {slot}; it has {', '.join(map(str, host_info[host]))}")
        found.setdefault(host, []).extend(slots)
    return found


def encode_world_info(world_info: Mapping[str, Sequence[int]]) -> str:
    """Machines and devices as base64 of JSON, safe in a URL."""
    return base64.urlsafe_b64encode(json.dumps({host: list(v) for host, v in world_info.items()}).encode()).decode()
