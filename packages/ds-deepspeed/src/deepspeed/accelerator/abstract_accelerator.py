"""`DeepSpeedAccelerator`: DeepSpeed's names for what `ds_core.accelerator.Accelerator` answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import torch

from ds_core.accelerator import Accelerator, Capability
from ds_core.errors import AcceleratorError

__all__ = ["DeepSpeedAccelerator"]

_TYPES = {
    "BFloat16Tensor": torch.bfloat16,
    "ByteTensor": torch.uint8,
    "DoubleTensor": torch.float64,
    "FloatTensor": torch.float32,
    "HalfTensor": torch.float16,
    "IntTensor": torch.int32,
    "LongTensor": torch.int64,
}


class DeepSpeedAccelerator:
    """One line a name over the device of this job."""

    def __init__(self, device: Accelerator) -> None:
        self._device: Accelerator = device
        self._compile_backend: str | None = device.compile_backend()

    def is_synchronized_device(self) -> bool:
        """Whether work is done when a call returns."""
        return not self._device.has(Capability.STREAMS)

    use_host_timers = is_synchronized_device
    resolves_data_dependency = is_synchronized_device
    handles_memory_backpressure = is_synchronized_device

    def device_name(self, device_index: int | None = None) -> str:
        """``"cpu"``, or ``"cuda"``, or ``"cuda:1"``."""
        kind = self._device.device_type
        return kind if device_index is None or kind == "cpu" else f"{kind}:{device_index}"

    def device(self, device_index: int | None = None) -> torch.device:
        """The torch device."""
        return self._device.device(device_index)

    def set_device(self, device_index: int) -> None:
        """Makes a device the one in use."""
        self._device.set_device(device_index)

    def current_device(self) -> int:
        """Index of the device in use."""
        return self._device.current_device()

    def current_device_name(self) -> str:
        """`device_name` of the device in use."""
        return self.device_name(self._device.current_device())

    def device_count(self) -> int:
        """How many devices there are."""
        return self._device.device_count()

    def is_available(self) -> bool:
        """Whether there is a device."""
        return self._device.device_count() > 0

    def synchronize(self, device_index: int | None = None) -> None:
        """Waits for the device."""
        self._device.synchronize(device_index)

    def random(self) -> Any:
        """torch's module of random numbers."""
        return torch.random

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        """Puts back a generator's state."""
        self._device.set_rng_state(new_state, device_index)

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        """The generator's state."""
        return self._device.rng_state(device_index)

    def manual_seed(self, seed: int) -> None:
        """Seeds all generators of torch."""
        self._device.manual_seed(seed)

    manual_seed_all = manual_seed

    def initial_seed(self) -> int:
        """The seed the host's generator began with."""
        return torch.initial_seed()

    def default_generator(self, device_index: int) -> torch.Generator:
        """The host's generator, or the device's where it has its own."""
        generators = getattr(self._device.torch_module(), "default_generators", None)
        return generators[device_index] if generators else torch.default_generator

    def Stream(self, *_: Any, **__: Any) -> Any:
        """A new stream; None where there are none."""
        return self._device.stream()

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        """Gives the work inside to `stream`."""
        return self._device.use_stream(stream)

    def current_stream(self, device_index: int | None = None) -> Any:
        """The stream in use; None where there are none."""
        return self._device.current_stream(device_index)

    def default_stream(self, device_index: int | None = None) -> Any:
        """The stream in use where nothing else was said; None where there are none."""
        return self._device.default_stream(device_index)

    def Event(self, **_: Any) -> Any:
        """An event that can be timed."""
        return self._device.event()

    def empty_cache(self) -> None:
        """Gives unused memory back."""
        self._device.empty_cache()

    def memory_allocated(self, device_index: int | None = None) -> int:
        """Bytes in use by tensors; 0 where the device does not say."""
        return self._device.memory(device_index).allocated_bytes or 0

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        """The most bytes in use so far; 0 where the device does not say."""
        return self._device.memory(device_index).peak_bytes or 0

    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        """Starts a new peak."""
        self._device.reset_peak_memory(device_index)

    reset_max_memory_allocated = reset_peak_memory_stats
    reset_max_memory_cached = reset_peak_memory_stats

    def memory_reserved(self, device_index: int | None = None) -> int:
        """Bytes the allocator holds; 0 where the device does not say."""
        return self._device.memory(device_index).reserved_bytes or 0

    memory_cached = memory_reserved
    max_memory_cached = memory_reserved
    max_memory_reserved = memory_reserved

    def memory_stats(self, device_index: int | None = None) -> Mapping[str, int]:
        """The figures there are, in bytes, by name."""
        found = self._device.memory(device_index)
        figures = {
            "allocated_bytes.all.current": found.allocated_bytes,
            "allocated_bytes.all.peak": found.peak_bytes,
            "reserved_bytes.all.current": found.reserved_bytes,
        }
        return {name: value for name, value in figures.items() if value is not None}

    def total_memory(self, device_index: int | None = None) -> int:
        """Bytes of the device; 0 where it does not say."""
        return self._device.memory(device_index).total_bytes or 0

    def available_memory(self, device_index: int | None = None) -> int:
        """Bytes of the device that no tensor uses."""
        return max(self.total_memory(device_index) - self.memory_allocated(device_index), 0)

    def is_bf16_supported(self) -> bool:
        """Whether the device computes in bfloat16."""
        return torch.bfloat16 in self._device.dtypes()

    def is_fp16_supported(self) -> bool:
        """Whether the device computes in float16."""
        return torch.float16 in self._device.dtypes()

    def supported_dtypes(self) -> list[torch.dtype]:
        """Dtypes the device computes in."""
        return sorted(self._device.dtypes(), key=str)

    def is_triton_supported(self) -> bool:
        """False: no kernel here is written in Triton."""
        return False

    def range_push(self, msg: str) -> Any:
        """Opens a range for the device's profiler."""
        return self._profiler("range_push")(msg)

    def range_pop(self) -> Any:
        """Closes the last range."""
        return self._profiler("range_pop")()

    def _profiler(self, name: str) -> Callable[..., Any]:
        ranges = getattr(self._device.torch_module(), "nvtx", None)
        return getattr(ranges, name, lambda *_: None)

    def lazy_call(self, callback: Callable[[], Any]) -> Any:
        """Calls `callback` when the device is there, which is now."""
        return callback()

    def communication_backend_name(self) -> str:
        """The torch.distributed backend of the device's tensors."""
        return self._device.comm_backend()

    def create_graph(self) -> Any:
        """A graph to capture work in; None where there are none."""
        return self._device.graph()

    def capture_to_graph(self, graph: Any, pool: Any = None, stream: Any = None) -> AbstractContextManager[Any]:
        """Captures the work inside."""
        return self._device.use_stream(stream) if graph is None else graph

    def replay_graph(self, graph: Any) -> None:
        """Runs what was captured."""
        graph.replay()

    def pin_memory(self, tensor: torch.Tensor, align_bytes: int = 1) -> torch.Tensor:
        """A page-locked copy; the tensor itself where the device has no use for one."""
        return self._device.pin(tensor)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is page-locked."""
        return self._device.is_pinned(tensor)

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is on a device of this kind."""
        return tensor.device.type == self._device.device_type

    def visible_devices_envs(self) -> list[str]:
        """Variables that limit which devices a process sees."""
        name = self._device.visible_devices_variable
        return [name] if name else []

    def set_visible_devices_envs(
        self, current_env: MutableMapping[str, str], local_accelerator_ids: Sequence[int]
    ) -> None:
        """Sets those variables in `current_env`."""
        for name in self.visible_devices_envs():
            current_env[name] = ",".join(str(index) for index in local_accelerator_ids)

    def export_envs(self) -> list[str]:
        """Beginnings of variables that launchers hand on to other machines."""
        return list(self._device.exported_variables)

    def get_compile_backend(self) -> str | None:
        """The torch.compile backend."""
        return self._compile_backend

    def set_compile_backend(self, backend: str) -> None:
        """Chooses another torch.compile backend."""
        known = torch.compiler.list_backends()
        if backend not in known:
            raise AcceleratorError(f"compile backend {backend!r} is not one of {', '.join(known)}")
        self._compile_backend = backend

    def op_builder_dir(self) -> NoReturn:
        """Refused: kernels are not built at run time."""
        self._no_builders("op_builder_dir()")

    def create_op_builder(self, class_name: str) -> NoReturn:
        """Refused: kernels are not built at run time."""
        self._no_builders(f"create_op_builder({class_name!r})")

    get_op_builder = create_op_builder

    def build_extension(self) -> NoReturn:
        """Refused: kernels are not built at run time."""
        self._no_builders("build_extension()")

    def _no_builders(self, call: str) -> NoReturn:
        raise AcceleratorError(
            f"{call}: kernels come compiled in ds-accel wheels and are not built at run time; `ds ops` lists them"
        )

    def __getattr__(self, name: str) -> Any:
        if name not in _TYPES:
            raise AttributeError(f"{type(self).__name__} of {self.__dict__.get('_device')} has no attribute {name!r}")
        return functools.partial(torch.tensor, dtype=_TYPES[name], device=self._device.device())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._device.name!r})"
