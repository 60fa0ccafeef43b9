"""The random generators of a rank: torch's on host and device, Python's and numpy's; saved, restored, or begun anew.

Note [Ranks that were not there]
    A generator whose state a checkpoint has not for a rank begins a stream of its own, which is the same whenever that
    checkpoint is loaded: its seed is a hash of the first rank's host state, its name and the rank.

Source: the state is that of the Mersenne Twister (Matsumoto and Nishimura, 1998) in Python and in numpy's global
generator alike: 624 words, a position, and the second of a pair of normal numbers where one is left.
"""

from __future__ import annotations

import hashlib
import logging
import random
import struct
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ds_core.accelerator import Accelerator

__all__ = ["HOST", "begin", "collect", "restore", "seed_anew", "seed_for"]

logger = logging.getLogger(__name__)

HOST = "host"
DEVICE = "device"
PYTHON = "python"
NUMPY = "numpy"

_TWISTER = struct.Struct("<624II?d")
_PYTHON_VERSION = 3
"""Of what `random.getstate` gives."""


def begin(seed: int, accelerator: Accelerator) -> None:
    """Begins the streams of all generators, Python's and numpy's global ones included."""
    import numpy

    accelerator.manual_seed(seed)  # seeds the host too
    random.seed(seed)
    numpy.random.seed(seed & 0xFFFFFFFF)


def collect(accelerator: Accelerator | None) -> dict[str, torch.Tensor]:
    """The states of all generators there are, uint8 and 1-D, by name; numpy's once its random numbers are imported."""
    states = {HOST: torch.get_rng_state()}
    if accelerator is not None and accelerator.device_type != "cpu":
        states[DEVICE] = accelerator.rng_state().cpu().view(-1).view(torch.uint8)
    _, words, spare = random.getstate()
    states[PYTHON] = _packed(words[:-1], words[-1], spare)
    numbers = sys.modules.get("numpy.random")
    if numbers is not None:
        kind, keys, place, has_spare, left = numbers.get_state()
        if kind == "MT19937":
            states[NUMPY] = _packed(keys.tolist(), place, left if has_spare else None)
        else:
            logger.warning("numpy's global generator is %s, which checkpoints do not keep; only MT19937 is", kind)
    return states


def restore(name: str, state: torch.Tensor, accelerator: Accelerator | None) -> None:
    """Puts a state back that `collect` gave."""
    if name == HOST:
        torch.set_rng_state(state)
    elif name == DEVICE and accelerator is not None:
        accelerator.set_rng_state(state)
    elif name == PYTHON:
        words, place, spare = _unpacked(state)
        random.setstate((_PYTHON_VERSION, (*words, place), spare))
    elif name == NUMPY:
        words, place, spare = _unpacked(state)
        numbers: Any = sys.modules["numpy.random"]
        numbers.set_state(("MT19937", words, place, int(spare is not None), spare or 0.0))


def seed_for(first: torch.Tensor, name: str, rank: int) -> int:
    """63 bits for a generator that a checkpoint has no state of; `first` is the first rank's host state."""
    text = first.numpy().tobytes() + f":{name}:{rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def seed_anew(names: Iterable[str], first: torch.Tensor, rank: int, accelerator: Accelerator | None) -> None:
    """Begins streams of their own; see Note [Ranks that were not there]. Leaves other generators alone."""
    for name in names:
        seed = seed_for(first, name, rank)
        if name == HOST:
            torch.default_generator.manual_seed(seed)
        elif name == DEVICE and accelerator is not None:
            host = torch.get_rng_state()
            accelerator.manual_seed(seed)  # seeds the host too
            torch.set_rng_state(host)
        elif name == PYTHON:
            random.seed(seed)
        elif name == NUMPY:
            numbers: Any = sys.modules["numpy.random"]
            numbers.seed([seed & 0xFFFFFFFF, seed >> 32])


def _packed(words: Iterable[int], place: int, spare: float | None) -> torch.Tensor:
    data = _TWISTER.pack(*words, place, spare is not None, spare or 0.0)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpacked(state: torch.Tensor) -> tuple[list[int], int, float | None]:
    *words, place, has_spare, spare = _TWISTER.unpack(state.numpy().tobytes())
    return words, place, spare if has_spare else None
