"""`Bench`: the device in a worker process, made at first need, and what cases may rely on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ds_core.errors import OpError
from ds_core.hooks import Availability
from ds_core.plugins.requirements import installed_version
from ds_core.testing.conformance.case import Needs
from ds_core.testing.conformance.kit import Filtered
from ds_core.testing.conformance.outcome import Filter

if TYPE_CHECKING:
    import torch

    from ds_core.accelerator.contract import Accelerator
    from ds_core.testing.conformance.target import Target

__all__ = ["Bench", "LibraryBench", "OpUnderTest"]


class OpUnderTest(NamedTuple):
    """An op as the bench offers it: what to call, on which device, and which kernel a call would get.

    `native` tells whether a call with these arguments runs a kernel of the wheel, so is held to the bounds of kernels.
    """

    call: Callable[..., Any]
    device: torch.device
    provider: str
    native: Callable[..., bool]


class Bench:
    """The device under test.

    Args:
        target: which one.
        entering: called with True before the wheel is asked to probe or make the device, and with False after, so that
            a crash in there is known for what it is.
    """

    def __init__(self, target: Target, entering: Callable[[bool], None] = lambda _: None) -> None:
        self.target: Target = target
        self._entering: Callable[[bool], None] = entering
        self._unusable: Filter | None = None
        self._made: Accelerator | None = None
        self._asked: bool = False
        self.error: Exception | None = None

    @property
    def is_library(self) -> bool:
        """Whether there is a library of kernels only, and no device."""
        return False

    def accelerator(self) -> Accelerator:
        """The accelerator.

        Raises:
            Filtered: it is not usable here.
        """
        if not self._asked:
            self._asked = True
            self._entering(True)
            self._unusable = self._make()
            self._entering(False)
        if self._made is None:
            assert self._unusable is not None
            raise Filtered(self._unusable)
        return self._made

    def unusable(self) -> Filter | None:
        """Why the device cannot be used here; None when it can."""
        try:
            self.accelerator()
        except Filtered:
            return self._unusable
        return None

    def unmet(self, needs: Needs) -> Filter | None:
        """What of `needs` is not there."""
        for wheel in needs.wheels:
            if installed_version(wheel) is None:
                return Filter("wheel", wheel, f"{wheel} is not installed")
        if not needs.device:
            return None
        unusable = self.unusable()
        if unusable is not None:
            return unusable
        accelerator = self.accelerator()
        for capability in needs.capabilities:
            if not accelerator.has(capability):
                return Filter("capability", capability.value, f"the device does not claim {capability.value}")
        listed = {str(dtype).removeprefix("torch.") for dtype in accelerator.dtypes()} if needs.dtypes else set()
        for dtype in needs.dtypes:
            if dtype not in listed:
                return Filter("dtype", dtype, f"the device does not list {dtype} among its dtypes")
        if needs.devices > 1 and accelerator.device_count() < needs.devices:
            count = accelerator.device_count()
            return Filter("devices", str(needs.devices), f"{needs.devices} devices are needed, {count} is there")
        return None

    def op(self, name: str) -> OpUnderTest:
        """The op as the registry resolves it for the device."""
        from ds_core.ops.registry import resolve

        found = resolve(name, self.accelerator().device_type)

        def native(**arguments: Any) -> bool:
            return found.native is not None and (found.supports is None or found.supports(**arguments) is None)

        return OpUnderTest(found, self.accelerator().device(), found.provider, native)

    def facts(self) -> dict[str, Any]:
        """What the report says of the device and the wheel."""
        record = self.target.record
        told: dict[str, Any] = {
            "id": self.target.id,
            "name": self.target.name,
            "wheel": record.dist,
            "wheel_version": record.version,
            "hook_api": None if record.api is None else ".".join(map(str, record.api)),
            "usable": self.unusable() is None,
            "reason": "" if self._unusable is None else self._unusable.text,
        }
        if self._made is None:
            return told
        accelerator = self._made
        return told | {
            "device_type": accelerator.device_type,
            "device_count": accelerator.device_count(),
            "capabilities": sorted(capability.value for capability in accelerator.capabilities),
            "dtypes": sorted(str(dtype).removeprefix("torch.") for dtype in accelerator.dtypes()),
            "comm_backend": accelerator.comm_backend(),
            "properties": dict(accelerator.properties()),
        }

    def _make(self) -> Filter | None:
        # Through the same door as a job: selected by its full id, once torch was imported with its backends.
        import torch  # noqa: F401

        from ds_core.accelerator import select

        entry = self.target.entry
        if entry is None:
            return _not_usable(self.target.record.describe())
        try:
            answer: object = entry.is_available()
        except Exception as error:  # noqa: BLE001 - a case of level 0 fails with it
            self.error = error
            return _not_usable(f"the probe raised {type(error).__name__}: {error}")
        if not isinstance(answer, Availability):
            return _not_usable(f"the probe answered {answer!r}")
        if not answer.usable:
            return _not_usable(answer.reason)
        try:
            self._made = select(self.target.id)
        except Exception as error:  # noqa: BLE001 - the case device/is_made fails with it
            self.error = error
            return _not_usable(f"it could not be made ({type(error).__name__}: {error})")
        return None


class LibraryBench(Bench):
    """A library of kernels by itself, called with host pointers: of the host, or of a device that is emulated.

    Args:
        path: the library, with the op table of ``ds_kernel.h``.
        name: whose it is, for the report.
    """

    def __init__(self, path: Path, name: str) -> None:
        from ds_core.ops import native
        from ds_core.ops.calls import HostLauncher, KernelOps

        self.name: str = name
        self.library: native.KernelLibrary = native.load(path)
        self.kernels: KernelOps = KernelOps(self.library, HostLauncher())

    @property
    def is_library(self) -> bool:
        """True."""
        return True

    def unusable(self) -> Filter | None:
        """None: it was loaded."""
        return None

    def unmet(self, needs: Needs) -> Filter | None:
        """Everything but kernels."""
        return None if needs.kernels else Filter("not usable", "the device", "a library of kernels is no device")

    def op(self, name: str) -> OpUnderTest:
        """The op made of the library's rows."""
        import torch

        kernel: Callable[..., Any] = getattr(self.kernels, name, _not_called)
        return OpUnderTest(kernel, torch.device("cpu"), f"{self.library.path.name}", lambda **_: True)

    def facts(self) -> dict[str, Any]:
        """What the library says of itself."""
        found = self.library
        return {
            "id": self.name,
            "usable": True,
            "reason": "",
            "library": found.path.name,
            "properties": {"target": found.target, "build": found.build, "abi": ".".join(map(str, found.abi))},
            "rows": list(found.kernels),
        }


def _not_called(*_: Any, **__: Any) -> Any:
    raise OpError("ds_core.ops.calls has no way to call a kernel for it")


def _not_usable(why: str) -> Filter:
    return Filter("not usable", "the device", f"the device is not usable here: {why or 'its probe gave no reason'}")
