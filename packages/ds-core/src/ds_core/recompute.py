"""Recomputation: activations of a function are thrown away and made again in backward, from its inputs and RNG state.

Source: Chen et al., Training Deep Nets with Sublinear Memory Cost (2016). The work is torch.utils.checkpoint's; what a
config's ``activation_checkpointing`` asks beyond it (dividing saved inputs over ranks, keeping them on the host) is
planned in ds-recompute and refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from ds_core import accelerator as accelerators
from ds_core.errors import ConfigError, EngineError, MissingWheelError

__all__ = [
    "CheckpointFunction",
    "RngTracker",
    "checkpoint",
    "configure",
    "get_rng_tracker",
    "is_configured",
    "model_parallel_manual_seed",
    "model_parallel_reconfigure_tp_seed",
    "non_reentrant_checkpoint",
    "partition_activations_in_checkpoint",
    "reset",
    "set_num_layers",
]

MODEL_PARALLEL = "model-parallel-rng"
"""The stream of random numbers that differs between ranks which share a layer."""
_MODEL_PARALLEL_OFFSET = 2718
_WAITING = {
    "partition_activations": "partition_activations",
    "contiguous_checkpointing": "contiguous_memory_optimization",
    "checkpoint_in_cpu": "cpu_checkpointing",
}
"""Arguments of `configure` that ask for more than recomputation, by the config's key."""
_state: dict[str, Any] = {"configured": False, "layers": None}


def configure(
    mpu_: Any = None,
    deepspeed_config: str | Path | Mapping[str, Any] | None = None,
    partition_activations: bool | None = None,
    contiguous_checkpointing: bool | None = None,
    num_checkpoints: int | None = None,
    checkpoint_in_cpu: bool | None = None,
    synchronize: bool | None = None,
    profile: bool | None = None,
) -> None:
    """Sets recomputation up; arguments go before the config's ``activation_checkpointing``.

    Args:
        mpu_: not needed; the mesh is planned from the config.
        deepspeed_config: path or dict whose section is read.
        partition_activations, contiguous_checkpointing, checkpoint_in_cpu: refused when true.
        num_checkpoints: how many there will be; only told.
        synchronize, profile: accepted; recomputation waits for nothing, and torch's profiler shows it.

    Raises:
        MissingWheelError: something is asked for that comes with ds-recompute.
    """
    section = _section(deepspeed_config)
    given = {
        "partition_activations": partition_activations,
        "contiguous_checkpointing": contiguous_checkpointing,
        "checkpoint_in_cpu": checkpoint_in_cpu,
    }
    for name, key in _WAITING.items():
        asked = given[name] if given[name] is not None else section.get(key, False)
        if asked:
            raise MissingWheelError(
                f"activation_checkpointing.{key} (configure({name}=True)) is planned in ds-recompute, which is not "
                "released yet; leave it out: recomputation itself works without"
            )
    _state["configured"] = True
    _state["layers"] = num_checkpoints if num_checkpoints is not None else section.get("number_checkpoints")


def _section(config: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if config is None:
        return {}
    from ds_core.config.source import read

    whole, label = read(config)
    section = whole.get("activation_checkpointing", {})
    if not isinstance(section, Mapping):
        raise ConfigError(f"{label}: activation_checkpointing must be an object, got {section!r}")
    return section


def is_configured() -> bool:
    """Whether `configure` was called since the start or the last `reset`."""
    return bool(_state["configured"])


def reset() -> None:
    """Forgets what `configure` was told."""
    _state.update(configured=False, layers=None)


def set_num_layers(nlayers: int) -> None:
    """Tells how many layers there are; nothing here depends on it."""
    _state["layers"] = nlayers


def partition_activations_in_checkpoint(partition_activation: bool) -> None:
    """Accepts False; True comes with ds-recompute.

    Raises:
        MissingWheelError: True.
    """
    configure(partition_activations=partition_activation)


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``, whose activations are made again in backward.

    Gradients are those of the plain call, dropout and autocast included; nothing in the arguments need require them.
    """
    return torch_checkpoint(function, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)


def non_reentrant_checkpoint(function: Callable[..., Any], *args: Any) -> Any:
    """As `checkpoint`."""
    return checkpoint(function, *args)


class RngTracker:
    """Streams of random numbers by name, beside the usual one.

    Ranks that share a layer draw alike from the usual stream and differently from one of their own.
    """

    def __init__(self) -> None:
        self._states: dict[str, torch.Tensor] = {}
        self._seeds: set[int] = set()

    def reset(self) -> None:
        """Forgets all streams."""
        self._states, self._seeds = {}, set()

    def get_states(self) -> dict[str, torch.Tensor]:
        """The streams' states, by name."""
        return dict(self._states)

    def set_states(self, states: Mapping[str, torch.Tensor]) -> None:
        """Puts back what `get_states` gave."""
        self._states = dict(states)

    def add(self, name: str, seed: int) -> None:
        """A new stream; the usual one goes on as if nothing was.

        Raises:
            EngineError: the name or the seed is taken.
        """
        if name in self._states or seed in self._seeds:
            raise EngineError(f"a stream of random numbers with the name {name!r} or the seed {seed} is there already")
        device = accelerators.current()
        usual, host = device.rng_state(), torch.get_rng_state()
        device.manual_seed(seed)
        self._seeds.add(seed)
        self._states[name] = device.rng_state()
        device.set_rng_state(usual)
        torch.set_rng_state(host)

    @contextmanager
    def fork(self, name: str = MODEL_PARALLEL) -> Iterator[None]:
        """A context in which the device draws from the stream `name`.

        Raises:
            EngineError: there is none of this name.
        """
        if name not in self._states:
            known = ", ".join(self._states) or "none"
            raise EngineError(f"there is no stream of random numbers {name!r}, only {known}; add(name, seed) makes one")
        device = accelerators.current()
        usual = device.rng_state()
        device.set_rng_state(self._states[name])
        try:
            yield
        finally:
            self._states[name] = device.rng_state()
            device.set_rng_state(usual)


_TRACKER = RngTracker()


def get_rng_tracker() -> RngTracker:
    """The tracker of this process."""
    return _TRACKER


def model_parallel_manual_seed(seed: int) -> None:
    """Seeds the usual stream alike on ranks that share a layer, and gives each of them one of its own."""
    from ds_core import groups

    accelerators.current().manual_seed(seed)
    _TRACKER.reset()
    _TRACKER.add(MODEL_PARALLEL, seed + _MODEL_PARALLEL_OFFSET + groups.get_tensor_model_parallel_rank())


def model_parallel_reconfigure_tp_seed(seed: int) -> None:
    """Begins the stream of `model_parallel_manual_seed` anew, with another seed; the usual one goes on."""
    from ds_core import groups

    _TRACKER.reset()
    _TRACKER.add(MODEL_PARALLEL, seed + _MODEL_PARALLEL_OFFSET + groups.get_tensor_model_parallel_rank())
