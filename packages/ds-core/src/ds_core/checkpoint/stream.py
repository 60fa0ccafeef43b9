"""Writes a safetensors file one tensor at a time, so that tensors which are not in memory need not be all at once.

Source: the format's description, https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ds_core.errors import CheckpointError
from ds_core.state import Fragment

__all__ = ["write_fragments"]

NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_fragments(path: Path, fragments: Mapping[str, Fragment]) -> None:
    """Writes the values of `fragments` under their names, 1-D, durably.

    Wider dtypes come first, which keeps every tensor on an address its dtype can be read from; apart from that they
    are loaded in the order given.

    Raises:
        CheckpointError: a dtype the format has no name for.
    """
    order = sorted(fragments.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {}
    end = 0
    for name, fragment in order:
        if fragment.dtype not in NAMES:
            raise CheckpointError(
                f"{fragment.key} is {fragment.dtype}, which safetensors cannot hold; it can {', '.join(NAMES.values())}"
            )
        numel = fragment.stop - fragment.start
        start, end = end, end + numel * fragment.dtype.itemsize
        header[name] = {"dtype": NAMES[fragment.dtype], "shape": [numel], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, fragment in order:
            values = fragment.values().detach().cpu().contiguous()
            file.write(values.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
