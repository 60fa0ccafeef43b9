"""The index of a folder of weights in shards, as Hugging Face writes it: which tensor is in which file."""

from __future__ import annotations

import json
from pathlib import Path

from ds_core.checkpoint.storage.files import read_whole
from ds_core.errors import CheckpointError

__all__ = ["read_weight_map"]

LIMIT_BYTES = 256 << 20


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name to the name of a file beside the index. Links are followed, as a hub's cache is made of them.

    Raises:
        CheckpointError: it is no index, or names what is not a file beside it.
    """
    try:
        weights = json.loads(read_whole(index, LIMIT_BYTES, follow=True))["weight_map"]
        places = {str(name): str(file) for name, file in weights.items()}
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of weights: it needs a weight_map of names to files") from error
    for file in set(places.values()):
        if Path(file).name != file or file in (".", "..") or not (index.parent / file).is_file():
            raise CheckpointError(f"{index} names {file!r}, which is not a file beside it")
    return places
