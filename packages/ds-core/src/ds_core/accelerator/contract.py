"""The `Accelerator` contract: what core asks of a device, with an answer for whatever the device lacks.

Note [Defaults]
~~~~~~~~~~~~~~~
A vendor whose device is a torch backend, in-tree or out-of-tree, sets `name` and `device_type`, lists `capabilities`,
and is done: the defaults ask the module `torch.get_device_module` knows (the vendor's own), else `torch.accelerator`
when the device is torch's current accelerator. The module goes first because `torch.accelerator` also has functions
for what the backend behind it never implemented: on two devices of strangers its memory figures failed an assertion,
or it refused to synchronize, while the vendor's module had the answer. What neither has is answered, not raised: one
device, no figures, the host's random state, a stream that is no stream. Core asks ``acc.has(Capability.X)`` and never
looks at a device's name.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ds_core.accelerator.host_event import HostEvent
from ds_core.errors import AcceleratorError

if TYPE_CHECKING:
    from types import ModuleType

    import torch

    from ds_core.aio.contract import AsyncIO
    from ds_core.config.aio import AioSection

__all__ = ["Accelerator", "Capability", "HostEvent", "MemorySnapshot"]


class Capability(enum.Enum):
    """What a device may be able to do beyond the contract; a device without one runs core's working default."""

    STREAMS = "streams"
    """Work goes to streams that can be made and chosen. Without: all work runs in the order it is given."""
    EVENTS = "events"
    """Moments of the device's work can be timed and waited for. Without: the host's clock, after `synchronize`."""
    PINNED_MEMORY = "pinned memory"
    """Host memory can be page-locked for it. Without: staging goes through ordinary memory."""
    GRAPHS = "graphs"
    """Work can be captured once and replayed. Without: every kernel is launched each time."""
    ALLOCATOR_STATS = "allocator figures"
    """It says how much memory it gave out. Without: the figures are None."""
    STORAGE_ALIASING = "storage aliasing"
    """Tensors over one memory share a torch storage, which tells that they do, and can be set and resized. Without:
    views still share their values, but nobody can tell, and `engine.offload_states` is refused."""
    ASYNC_COPY = "async copy"
    """Copies to and from page-locked memory run while the host goes on. Without: a copy is done when it returns."""
    COMPILE = "compile"
    """`torch.compile` makes code for it. Without: models run as they are."""
    COLLECTIVES = "collectives"
    """It has a torch.distributed backend of its own. Without: core stages collectives in host memory over gloo."""
    ASYNC_IO = "async I/O"
    """It brings an engine between files and tensors. Without: core's threads and host memory."""
    DATA_PTR = "raw data pointers"
    """``Tensor.data_ptr`` is an address that kernels may be given. Without: ops run as torch code."""


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """Memory figures of one device in bytes; None where the device does not say.

    Attributes:
        allocated_bytes: in use by tensors.
        peak_bytes: the most in use since `Accelerator.reset_peak_memory`.
        total_bytes: what the device has.
        reserved_bytes: what the allocator took from the device, in use or kept for later.
    """

    allocated_bytes: int | None = None
    peak_bytes: int | None = None
    total_bytes: int | None = None
    reserved_bytes: int | None = None


class Accelerator:
    """One device kind. See Note [Defaults] for what a vendor has to write.

    Attributes:
        name: the accelerator's short name, as users write it.
        device_type: torch device type.
        visible_devices_variable: environment variable that limits which devices a process sees; "" where none does.
        exported_variables: prefixes of environment variables that launchers hand on to other machines.
        capabilities: what the device can do beyond the contract.
        id: ``"wheel:name"``, set by `select`.
    """

    name: ClassVar[str] = ""
    device_type: ClassVar[str] = ""
    visible_devices_variable: ClassVar[str] = ""
    exported_variables: ClassVar[tuple[str, ...]] = ()
    capabilities: frozenset[Capability] = frozenset()
    id: str = ""

    def has(self, capability: Capability) -> bool:
        """Whether the device can do `capability` itself."""
        return capability in self.capabilities

    # ---- devices

    def device(self, index: int | None = None) -> torch.device:
        """The torch device `index`, the current one when None."""
        import torch

        return torch.device(self.device_type, self.current_device() if index is None else index)

    def device_count(self) -> int:
        """How many devices of this kind the process sees."""
        return int(self._ask("device_count", default=1))

    def current_device(self) -> int:
        """Index of the device in use."""
        return int(self._ask("current_device", accelerator="current_device_index", default=0))

    def set_device(self, index: int) -> None:
        """Makes device `index` the one in use."""
        count = self.device_count()
        if not 0 <= index < count:
            raise AcceleratorError(f"{self.name} has devices 0 to {count - 1}, got {index}.")
        self._ask("set_device", index, accelerator="set_device_index")

    def synchronize(self, index: int | None = None) -> None:
        """Waits until all work given to the device is done."""
        # torch.accelerator waits for streams, and raises where the backend has none.
        self._ask("synchronize", index, accelerator="synchronize" if self.has(Capability.STREAMS) else None)

    def properties(self, index: int | None = None) -> Mapping[str, str]:
        """Facts to show in ``ds report``: the product's name, the accelerator's own where torch has none."""
        return {"name": str(self._ask("get_device_name", index, default=self.name, accelerator=None))}

    def prepare(self) -> None:
        """Settles what the device needs of the process. Called for every engine, before anything is moved."""

    # ---- random numbers

    def manual_seed(self, seed: int) -> None:
        """Seeds the host and every device torch knows."""
        import torch

        torch.manual_seed(seed)

    def rng_state(self, index: int | None = None) -> torch.Tensor:
        """The generator's state as a host tensor; the host's where the device draws from no generator of its own."""
        import torch

        found = self._function("get_rng_state")
        state: torch.Tensor = torch.get_rng_state() if found is None else found(self._index(index))
        return state

    def set_rng_state(self, state: torch.Tensor, index: int | None = None) -> None:
        """Puts back what `rng_state` gave."""
        import torch

        found = self._function("set_rng_state")
        if found is None:
            torch.set_rng_state(state)
        else:
            found(state, self._index(index))

    # ---- memory

    def memory(self, index: int | None = None) -> MemorySnapshot:
        """Bytes in use, highest so far since `reset_peak_memory`, and in all; unknown figures are None."""
        if not self.has(Capability.ALLOCATOR_STATS):
            return MemorySnapshot()
        at = self._index(index)
        free_total = self._ask("mem_get_info", at, accelerator="get_memory_info")
        return MemorySnapshot(
            allocated_bytes=self._ask("memory_allocated", at),
            peak_bytes=self._ask("max_memory_allocated", at),
            total_bytes=None if free_total is None else int(free_total[1]),
            reserved_bytes=self._ask("memory_reserved", at),
        )

    def reset_peak_memory(self, index: int | None = None) -> bool:
        """Starts a new peak; False where the device cannot."""
        if not self.has(Capability.ALLOCATOR_STATS):
            return False
        self._ask("reset_peak_memory_stats", self._index(index))
        return True

    def empty_cache(self) -> None:
        """Gives memory that nothing holds back to the system. Called when an engine was built, and when one is gone."""
        # torch.accelerator fails an assertion where the backend's allocator is not one that it can ask for figures.
        self._ask("empty_cache", accelerator="empty_cache" if self.has(Capability.ALLOCATOR_STATS) else None)

    # ---- numbers and transport

    def dtypes(self) -> frozenset[torch.dtype]:
        """Dtypes the device computes in; float32 is what every device must have."""
        import torch

        return frozenset({torch.float32})

    def autocast_dtypes(self) -> frozenset[torch.dtype]:
        """Dtypes ``torch.autocast`` takes on the device; empty where it takes none."""
        import torch

        if not torch.amp.is_autocast_available(self.device_type):
            return frozenset()
        found = self._function("get_amp_supported_dtype")
        if found is None and self.device_type == torch._C._get_privateuse1_backend_name():
            return frozenset()  # torch asks such a device's module, and fails where it does not say
        low = {torch.bfloat16, torch.float16}
        return frozenset(low & (self.dtypes() if found is None else set(found())))

    def comm_backend(self) -> str:
        """The torch.distributed backend for this device's tensors; gloo, staged on the host, where none is known."""
        import torch.distributed

        if not torch.distributed.is_available():
            return "gloo"
        try:
            return torch.distributed.get_default_backend_for_device(self.device_type)
        except ValueError:
            return "gloo"

    def compile_backend(self) -> str | None:
        """The torch.compile backend for this device, None when there is none."""
        return "inductor" if self.has(Capability.COMPILE) else None

    def to_host(self, tensor: torch.Tensor, *, non_blocking: bool = False) -> torch.Tensor:
        """`tensor` in host memory; the same tensor when it is there already."""
        return tensor.to("cpu", non_blocking=non_blocking and self.has(Capability.ASYNC_COPY))

    def to_device(self, tensor: torch.Tensor, index: int | None = None, *, non_blocking: bool = False) -> torch.Tensor:
        """`tensor` on the device; the same tensor when it is there already."""
        return tensor.to(self.device(index), non_blocking=non_blocking and self.has(Capability.ASYNC_COPY))

    # ---- abilities with a working default

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A page-locked copy of a host tensor; the tensor itself where the device has no use for one."""
        return tensor.pin_memory() if self.has(Capability.PINNED_MEMORY) else tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is page-locked host memory; False where the device has no such thing."""
        return self.has(Capability.PINNED_MEMORY) and tensor.is_pinned()

    def stream(self) -> Any:
        """A new stream, None where the device has none (work then runs in order)."""
        return self._made("Stream") if self.has(Capability.STREAMS) else None

    def current_stream(self, index: int | None = None) -> Any:
        """The stream work is given to just now, None where the device has none."""
        if not self.has(Capability.STREAMS):
            return None
        return self._ask("current_stream", self._index(index))

    def default_stream(self, index: int | None = None) -> Any:
        """The stream work is given to where nothing else was said; None where the device does not tell."""
        if not self.has(Capability.STREAMS):
            return None
        return self._ask("default_stream", self._index(index), accelerator=None)

    def use_stream(self, stream: Any) -> AbstractContextManager[Any]:
        """Gives the work inside to `stream`; does nothing for None."""
        if stream is None:
            return nullcontext()
        found = self._function("stream")
        return stream if found is None else found(stream)  # type: ignore[no-any-return] # torch's own enter and leave

    def event(self) -> Any:
        """An event with ``record``, ``synchronize`` and ``elapsed_time``; of the host's clock where it has none."""
        return self._made("Event", enable_timing=True) if self.has(Capability.EVENTS) else HostEvent()

    def graph(self) -> Any:
        """A graph to capture work in (``with acc.use_stream(s), graph:``) and to ``replay``; None where it has none."""
        found = self._function("Graph", "Graph") if self.has(Capability.GRAPHS) else None
        return None if found is None else found()

    def async_io(self, config: AioSection) -> AsyncIO | None:
        """The device's own engine for files and tensors, asked for once where it has `Capability.ASYNC_IO`.

        None where it cannot serve `config`; core's threads then do the work, or `use_gds` is refused.
        """
        return None

    # ---- how the defaults are found, see Note [Defaults]

    def torch_module(self) -> ModuleType | None:
        """The module that answers for the device, with the names of `torch.cuda`; None where torch knows none."""
        import torch

        try:
            found: ModuleType = torch.get_device_module(self.device_type)
        except RuntimeError:
            return None
        return found

    def _index(self, index: int | None) -> int:
        return self.current_device() if index is None else index

    def _made(self, kind: str, **options: Any) -> Any:
        # A stream or an event: of the device's module, else of torch for every device.
        import torch

        found = self._function(kind)
        return getattr(torch, kind)(self.device_type, **options) if found is None else found(**options)

    def _function(self, name: str, accelerator: str | None = None) -> Callable[..., Any] | None:
        # `name` of the device's module, else `accelerator` of torch.accelerator; see Note [Defaults].
        import torch

        found = getattr(self.torch_module(), name, None)
        if found is None and accelerator is not None:
            current = torch.accelerator.current_accelerator()
            if current is not None and current.type == self.device_type:
                found = getattr(torch.accelerator, accelerator, None)
        return found

    def _ask(self, name: str, *arguments: Any, accelerator: str | None = "", default: Any = None) -> Any:
        # accelerator: the name in torch.accelerator, "" for the same, None when it has none.
        found = self._function(name, name if accelerator == "" else accelerator)
        return default if found is None else found(*(a for a in arguments if a is not None))
