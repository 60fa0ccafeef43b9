"""Forges checkpoints: manifests and data files with other content, and with the hashes that fit it.

Hashes are no signatures: whoever can change a checkpoint can make them fit. Attacks that tests try have valid ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ds_core.checkpoint.storage.manifest import BLOCK_BYTES, block_digest

__all__ = ["Content", "forge", "forge_data", "forge_header", "header", "read", "sealed"]

DATA = "rank-00000.safetensors"
Content = dict[str, Any]


def sealed(payload: bytes) -> bytes:
    """The manifest with the hash that fits."""
    place = payload.find(b'"xxh3_64": "') + 12
    blank = payload[:place] + b"0" * 16 + payload[place + 16 :]
    return blank[:place] + block_digest(blank).encode() + blank[place + 16 :]


def read(step: Path) -> Content:
    """What the manifest of a checkpoint folder says."""
    content: Content = json.loads((step / "manifest.json").read_bytes())
    return content


def forge(step: Path, content: Content) -> None:
    """Writes a manifest with this content."""
    (step / "manifest.json").write_bytes(sealed(json.dumps(content).encode()))


def forge_data(step: Path, payload: bytes) -> None:
    """Puts in a data file, with its length and hashes in the manifest."""
    (step / DATA).write_bytes(payload)
    content = read(step)
    blocks = [payload[start : start + BLOCK_BYTES] for start in range(0, len(payload), BLOCK_BYTES)]
    content["files"][DATA] = {"bytes": len(payload), "blocks": [block_digest(block) for block in blocks]}
    forge(step, content)


def header(step: Path) -> tuple[Content, bytes]:
    """The header of the data file, and what follows it."""
    payload = (step / DATA).read_bytes()
    length = int.from_bytes(payload[:8], "little")
    found: Content = json.loads(payload[8 : 8 + length])
    return found, payload[8 + length :]


def forge_header(step: Path, text: bytes, rest: bytes, length: int | None = None) -> None:
    """Puts in a data file of this header, `length` bytes as it says itself, and of what follows it."""
    forge_data(step, (len(text) if length is None else length).to_bytes(8, "little") + text + rest)
