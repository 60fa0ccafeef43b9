from __future__ import annotations

import logging
import mmap
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from ds_core import _builtin
from ds_core.accelerator import (
    Accelerator,
    Capability,
    HostAccelerator,
    HostEvent,
    MemorySnapshot,
    agree,
    candidates,
    choose,
    select,
)
from ds_core.errors import AcceleratorError, AcceleratorFallbackError, PluginConflictError, PluginError
from ds_core.hooks import AcceleratorEntry, Availability, hookimpl
from ds_core.plugins import Candidate, PluginManager, PluginState

USABLE = Availability(True, "", 1)
FACTORIES = """
from ds_core.accelerator import HostAccelerator

class ToyAccelerator(HostAccelerator):
    name = "toy"

def refuses():
    raise OSError("firmware too old")

def no_accelerator():
    return "cpu"
"""


@pytest.fixture(autouse=True)
def toy_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("toy_factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)


def device(
    name: str,
    answer: Availability | Callable[[], Availability] = USABLE,
    factory: str = "ds_core.accelerator.host:HostAccelerator",
    priority: int = 100,
    nodes: Sequence[str] = (),
    impersonates: Sequence[str] = (),
    is_floor: bool = False,
) -> AcceleratorEntry:
    probe = answer if callable(answer) else lambda: answer
    return AcceleratorEntry(name, probe, factory, priority, is_floor, nodes, impersonates)


def plugin(*entries: AcceleratorEntry) -> types.ModuleType:
    made = types.ModuleType("made_up_plugin")
    made.__file__ = "/made_up.py"

    def ds_accelerators() -> Sequence[AcceleratorEntry]:
        return entries

    vars(made).update(DS_HOOK_API=(1, 0), ds_accelerators=hookimpl(ds_accelerators))
    return made


def manager_of(**plugins: AcceleratorEntry | types.ModuleType) -> PluginManager:
    """A manager with core's own plugin and one plugin a keyword: ``ds_accel_cuda`` is wheel ds-accel-cuda."""
    made = PluginManager([], {})
    made.add_module(_builtin, "ds-core:builtin", "1.0")
    for name, brought in plugins.items():
        module = plugin(brought) if isinstance(brought, AcceleratorEntry) else brought
        made.add_module(module, f"{name.replace('_', '-')}:{name.rpartition('_')[2]}", "1.0")
    return made


NOT_HERE = Availability(False, "no driver")


def picked(manager: PluginManager, requested: str | None = None, nodes: Sequence[str] = (), **environ: str) -> str:
    return choose(requested, environ=environ, manager=manager, exists=lambda pattern: pattern in nodes).id


# ---- who decides


def test_argument_then_config_then_environment_then_automatic() -> None:
    manager = manager_of(w_a=device("a"), w_b=device("b"), w_c=device("c"), w_d=device("d", priority=200))
    environ = {"DS_ACCELERATOR": "c"}
    assert choose("a", config="b", environ=environ, manager=manager).id == "w-a:a"
    assert choose(None, config="b", environ=environ, manager=manager).id == "w-b:b"
    assert choose("auto", config="", environ=environ, manager=manager).id == "w-c:c"
    found = choose(None, config="auto", environ={}, manager=manager)
    assert (found.id, found.asked_by) == ("w-d:d", "automatic")


def test_core_alone_runs_on_its_reference_and_answers_to_cpu() -> None:
    assert picked(manager_of()) == "ds-core:reference"
    assert picked(manager_of(), "cpu") == "ds-core:reference"


def test_the_cpu_wheel_is_the_better_floor() -> None:
    manager = manager_of(ds_accel_cpu=device("cpu", priority=10, is_floor=True))
    assert picked(manager) == "ds-accel-cpu:cpu"
    assert picked(manager, "reference") == "ds-core:reference"


def test_a_floor_never_competes_whatever_its_priority() -> None:
    manager = manager_of(ds_accel_cpu=device("cpu", priority=9000, is_floor=True), w_a=device("a", priority=-1))
    assert picked(manager) == "w-a:a"


def test_equals_are_an_error_with_the_exact_lines() -> None:
    manager = manager_of(w_a=device("a"), w_b=device("b", Availability(True, "", 2)), w_c=device("c", priority=1))
    message = (
        r"^2 accelerators are equally usable: a \(1 device, w-a 1\.0 .*\), b \(2 devices, w-b 1\.0 .*\)\. "
        r"Set DS_ACCELERATOR=a or DS_ACCELERATOR=b\.$"
    )
    with pytest.raises(AcceleratorError, match=message):
        picked(manager)
    assert picked(manager, DS_ACCELERATOR="b") == "w-b:b"


def test_an_impersonator_excludes_the_impersonated_and_answers_to_its_name() -> None:
    cuda = device("cuda", Availability(True, "", 1))
    rocm = device("rocm", impersonates=("cuda",))
    assert picked(manager_of(ds_accel_cuda=cuda, ds_accel_rocm=rocm)) == "ds-accel-rocm:rocm"
    assert (
        picked(manager_of(ds_accel_cuda=device("cuda", NOT_HERE), ds_accel_rocm=rocm), "cuda") == "ds-accel-rocm:rocm"
    )
    assert picked(manager_of(ds_accel_rocm=rocm), "cuda") == "ds-accel-rocm:rocm"
    absent = device("rocm", NOT_HERE, impersonates=("cuda",))
    assert picked(manager_of(ds_accel_cuda=cuda, ds_accel_rocm=absent)) == "ds-accel-cuda:cuda"


# ---- asked for and not to be had


@pytest.mark.parametrize("name", ["vulcan", "cudda"])
def test_an_unknown_name_has_a_nearest(name: str) -> None:
    manager = manager_of(w_v=device("vulkan"))
    near = {"vulcan": "vulkan", "cudda": "cuda"}[name]
    with pytest.raises(AcceleratorError, match=f"'{name}' is not installed. Did you mean '{near}'.*DS_ACCELERATOR"):
        picked(manager, DS_ACCELERATOR=name)


def test_a_first_party_name_comes_with_the_pip_command() -> None:
    with pytest.raises(AcceleratorError, match=r"'xpu' is not installed\. Run: pip install ds-accel-xpu\. Installed: "):
        picked(manager_of(), "xpu")


def test_installed_but_not_here_says_why_and_who_asked() -> None:
    message = (
        r"^accelerator 'cuda' \(ds-accel-cuda 1\.0\) is installed but not usable here: no driver\. "
        r"Requested by the config key accelerator\.$"
    )
    with pytest.raises(AcceleratorError, match=message):
        choose(config="cuda", environ={}, manager=manager_of(ds_accel_cuda=device("cuda", NOT_HERE)))


def test_a_probe_that_raises_is_recorded_and_chained() -> None:
    def probe() -> Availability:
        raise OSError("bus error")

    manager = manager_of(w_a=device("a", probe))
    with pytest.raises(AcceleratorError, match="the probe raised OSError: bus error") as caught:
        picked(manager, "a")
    assert isinstance(caught.value.__cause__, OSError)
    assert manager.find("w-a")[0].state is PluginState.PROBE_ERROR


def test_a_probe_must_answer_with_availability() -> None:
    manager = manager_of(w_a=device("a", lambda: True))  # type: ignore[arg-type,return-value]
    assert "must return ds_core.hooks.Availability, got True" in candidates(manager)[-1].reason


def test_a_broken_wheel_asked_for_by_name_does_not_become_something_else() -> None:
    manager = PluginManager([Candidate("ds-accel-cpu", "1.0", "cpu", "no_such_module_here")], {})
    manager.add_module(_builtin, "ds-core:builtin", "1.0")
    with pytest.raises(
        AcceleratorError, match=r"ds-accel-cpu:cpu .*import error.*Requested by DS_ACCELERATOR"
    ) as caught:
        picked(manager, DS_ACCELERATOR="cpu")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_two_wheels_with_one_accelerator_name_are_both_named() -> None:
    manager = manager_of(w_a=device("toy"), w_b=device("toy"))
    with pytest.raises(PluginConflictError, match=r"DS_ACCELERATOR=w-a:toy or DS_ACCELERATOR=w-b:toy, or uninstall"):
        picked(manager, "toy")
    assert picked(manager, "w-b:toy") == "w-b:toy"


def test_a_strangers_cuda_is_neither_automatic_nor_cuda() -> None:
    manager = manager_of(acme_x=device("cuda"))
    with pytest.raises(AcceleratorError, match=r"acme-x 1\.0 uses this name.*set DS_ACCELERATOR=acme-x:cuda"):
        picked(manager, "cuda")
    with pytest.raises(AcceleratorFallbackError, match="acme-x:cuda is usable but must be asked for"):
        picked(manager)
    assert picked(manager, "acme-x:cuda") == "acme-x:cuda"


# ---- falling to the CPU


def test_a_machine_without_devices_is_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    manager = manager_of(ds_accel_cuda=device("cuda", NOT_HERE, nodes=("/dev/nvidia[0-9]*",)))
    with caplog.at_level(logging.INFO):
        assert picked(manager) == "ds-core:reference"
    assert caplog.records == []


def test_visible_hardware_with_its_wheel_not_working_stops() -> None:
    manager = manager_of(ds_accel_cuda=device("cuda", NOT_HERE, nodes=("/dev/nvidia[0-9]*",)))
    message = r"would run on the CPU .*ds-accel-cuda:cuda .* although /dev/nvidia\[0-9\]\* exists: no driver"
    with pytest.raises(AcceleratorFallbackError, match=message):
        picked(manager, nodes=["/dev/nvidia[0-9]*"])
    assert picked(manager, "cpu", nodes=["/dev/nvidia[0-9]*"]) == "ds-core:reference"
    assert picked(manager, nodes=["/dev/nvidia[0-9]*"], DS_ALLOW_CPU_FALLBACK="1") == "ds-core:reference"
    with pytest.raises(PluginError, match="DS_ALLOW_CPU_FALLBACK must be 0 or 1, got 'yes'"):
        picked(manager, nodes=["/dev/nvidia[0-9]*"], DS_ALLOW_CPU_FALLBACK="yes")


def test_visible_hardware_without_a_wheel_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert picked(manager_of(), nodes=["/dev/kfd"]) == "ds-core:reference"
    (record,) = caplog.records
    assert (
        record.getMessage()
        == "running on the CPU although /dev/kfd exists; to use the device: pip install ds-accel-rocm"
    )


def test_a_hook_that_raised_counts_as_an_accelerator_that_is_broken() -> None:
    broken = plugin()

    def ds_accelerators() -> Sequence[AcceleratorEntry]:
        raise OSError("gone")

    vars(broken)["ds_accelerators"] = hookimpl(ds_accelerators)
    with pytest.raises(AcceleratorFallbackError, match="OSError: gone"):
        picked(manager_of(acme_x=broken))
    with pytest.raises(AcceleratorError, match=r"'acme-x:x' cannot be used: .*OSError: gone"):
        picked(manager_of(acme_x=broken), "acme-x:x")


# ---- making it


def test_the_accelerator_is_made_once_and_recorded() -> None:
    manager = manager_of(w_toy=device("toy", factory="toy_factories:ToyAccelerator"))
    made = select("toy", environ={}, manager=manager)
    assert isinstance(made, Accelerator)
    assert (made.id, made.name) == ("w-toy:toy", "toy")
    assert select("toy", environ={}, manager=manager) is made
    assert manager.find("w-toy")[0].state is PluginState.SELECTED


@pytest.mark.parametrize(("factory", "message"), [("refuses", "OSError: firmware"), ("no_accelerator", "got str")])
def test_a_factory_that_fails_names_the_wheel(factory: str, message: str) -> None:
    manager = manager_of(w_toy=device("toy", factory=f"toy_factories:{factory}"))
    with pytest.raises(AcceleratorError, match=rf"accelerator 'toy' \(w-toy 1\.0\).*{message}"):
        select("toy", environ={}, manager=manager)


# ---- the contract's defaults


class UnknownDevice(Accelerator):
    """A device of which torch knows a type and nothing else: every answer is a default."""

    name: ClassVar[str] = "unknown"
    device_type: ClassVar[str] = "privateuseone"


def test_what_a_device_lacks_is_answered() -> None:
    unknown = UnknownDevice()
    assert not any(unknown.has(capability) for capability in Capability)
    assert unknown.device_count() == 1
    assert unknown.device() == torch.device("privateuseone", 0)
    assert unknown.memory() == MemorySnapshot(None, None, None)
    assert unknown.reset_peak_memory() is False
    assert unknown.comm_backend() == "gloo"
    assert unknown.dtypes() == {torch.float32}
    assert unknown.compile_backend() is None
    assert unknown.properties() == {"name": "unknown"}
    unknown.synchronize()
    unknown.set_device(0)
    host = torch.ones(2)
    assert unknown.pin(host) is host
    assert unknown.stream() is None
    with unknown.use_stream(None):
        pass
    assert isinstance(unknown.event(), HostEvent)
    with pytest.raises(AcceleratorError, match="unknown has devices 0 to 0, got 1"):
        unknown.set_device(1)


@pytest.mark.parametrize("accelerator", [HostAccelerator(), UnknownDevice()])
def test_random_numbers_repeat_from_a_saved_state(accelerator: Accelerator) -> None:
    accelerator.manual_seed(7)
    state = accelerator.rng_state()
    drawn = torch.rand(3)
    accelerator.set_rng_state(state)
    assert torch.equal(torch.rand(3), drawn)
    accelerator.manual_seed(7)
    assert torch.equal(torch.rand(3), drawn)


def test_the_host_measures_its_memory() -> None:
    host = HostAccelerator()
    before = host.memory()
    # Straight from the kernel: an allocator may serve a tensor from memory that earlier tests have freed.
    kept = mmap.mmap(-1, 64 * 2**20)
    for page in range(0, len(kept), mmap.PAGESIZE):
        kept[page] = 1
    after = host.memory()
    assert before.allocated_bytes is not None
    assert after.allocated_bytes is not None
    assert after.allocated_bytes - before.allocated_bytes > 48 * 2**20
    assert after.peak_bytes is not None
    assert after.total_bytes is not None
    assert after.allocated_bytes <= after.total_bytes
    kept.close()
    if host.reset_peak_memory():
        peak = host.memory().peak_bytes
        assert peak is not None
        assert peak < after.peak_bytes - 48 * 2**20


def test_the_host_is_one_device_and_copies_nothing() -> None:
    host = HostAccelerator()
    tensor = torch.ones(2)
    assert host.to_device(tensor) is tensor
    assert host.to_host(tensor) is tensor
    assert host.device() == torch.device("cpu")
    assert host.has(Capability.DATA_PTR)
    with pytest.raises(AcceleratorError, match="reference has one device, index 0, got 1"):
        host.set_device(1)


def test_host_events_measure_between_two_moments() -> None:
    first, second = HostEvent(), HostEvent()
    with pytest.raises(AcceleratorError, match="needs two recorded events"):
        first.elapsed_time(second)
    first.record()
    second.record()
    assert first.elapsed_time(second) >= 0


# ---- one choice per job


def gathered(*others: str) -> Callable[[str], list[str]]:
    return lambda mine: [mine, *others]


def test_equal_ranks_agree() -> None:
    manager = manager_of()
    accelerator = select("cpu", environ={}, manager=manager)
    said: list[str] = []
    agree(accelerator, lambda mine: said.append(mine) or [mine], manager=manager)  # type: ignore[func-returns-value]
    agree(accelerator, gathered(said[0].replace('"host": "', '"host": "other-')), manager=manager)


@pytest.mark.parametrize(
    ("mine", "theirs", "row"),
    [
        ("ds-core:reference", "ds-accel-cuda:cuda", "rank 1 on .*: accelerator ds-accel-cuda:cuda"),
        ('"ds-core": "1.0"', '"ds-core": "1.1"', r"rank 1 on .*: ds-core 1\.1 \(rank 0: 1\.0\)"),
        ('"ds-core": "1.0"', '"ds-core": "1.0", "x": "3"', r"rank 1 on .*: x 3 \(rank 0: not installed\)"),
    ],
)
def test_a_rank_that_differs_raises_with_a_row_a_rank(mine: str, theirs: str, row: str) -> None:
    manager = manager_of()
    accelerator = select("cpu", environ={}, manager=manager)
    with pytest.raises(AcceleratorError, match=row) as caught:
        agree(accelerator, lambda text: [text, text.replace(mine, theirs), text], manager=manager)
    assert "rank 0 on" in str(caught.value)
    assert "rank 2 on" in str(caught.value)
    assert "as rank 0" in str(caught.value)
    assert "Rank 0 has ds-core:reference" in str(caught.value)


def test_a_stranger_with_a_reserved_name_is_told_with_the_line_that_takes_it() -> None:
    told = (
        r"'cuda' is not installed\. Run: pip install ds-accel-cuda\. acme-reserved 1\.0 uses this name, which is "
        r"reserved for ds-accel-cuda; to use it set DS_ACCELERATOR=acme-reserved:cuda\."
    )
    with pytest.raises(AcceleratorError, match=told):
        picked(manager_of(acme_reserved=device("cuda")), "cuda")
