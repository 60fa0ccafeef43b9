"""What must work on a device whose tensors have no address and no storage, and which has no ability at all."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from slate import Run, SlateAccelerator, advance, install, make, on_the_device, on_the_host, train, weights_of

from ds_core import comm, ops, utils
from ds_core.accelerator import Capability, HostEvent, MemorySnapshot, computes_in, current, in_use, select
from ds_core.errors import ConfigError, EngineError
from ds_core.placeholder import assign, is_same_memory, show
from ds_core.testing import op_cases
from ds_core.testing.python_device import PythonTensor, load


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    """What every question of this module was answered on the device, in one process."""
    (found,) = on_the_device(ask_everything)
    return found  # type: ignore[no-any-return]


def ask_everything() -> dict[str, Any]:
    asked = (all_answers, moved, ran_ops, refusals, loaded)
    return {question.__name__: question() for question in asked}


def near(left: Run, right: Run) -> None:
    assert left[0] == pytest.approx(right[0], rel=1e-5)
    for name, weight in right[1].items():
        torch.testing.assert_close(left[1][name], weight, rtol=1e-5, atol=1e-6)


def all_answers() -> dict[str, Any]:
    """What the accelerator says, asked everything; torch.accelerator itself raises for most of it."""
    slate = SlateAccelerator()
    slate.synchronize()
    slate.empty_cache()
    slate.set_device(0)
    slate.manual_seed(3)
    state = slate.rng_state()
    slate.set_rng_state(state)
    host = torch.ones(2)
    with slate.use_stream(slate.stream()):
        here = slate.to_device(host, non_blocking=True)
    event = slate.event()
    event.record()
    event.synchronize()
    return {
        "abilities": [each.value for each in Capability if slate.has(each)],
        "torch raises": _raises(torch.accelerator.synchronize) and _raises(torch.accelerator.memory_allocated),
        "device": str(slate.device()),
        "count": slate.device_count(),
        "memory": slate.memory(),
        "reset": slate.reset_peak_memory(),
        "streams": (slate.stream(), slate.current_stream(), slate.default_stream(), slate.graph()),
        "event": isinstance(event, HostEvent),
        "pin": slate.pin(host) is host and not slate.is_pinned(host),
        "autocast": slate.autocast_dtypes(),
        "comm": slate.comm_backend(),
        "compile": slate.compile_backend(),
        "there and back": torch.equal(slate.to_host(here), host) and type(here) is PythonTensor,
    }


def _raises(ask: Callable[[], Any]) -> bool:
    with pytest.raises(RuntimeError):
        ask()
    return True


def test_every_missing_ability_is_answered(said: dict[str, Any]) -> None:
    assert said["all_answers"] == {
        "abilities": [],
        "torch raises": True,
        "device": "slate:0",
        "count": 1,
        "memory": MemorySnapshot(),
        "reset": False,
        "streams": (None, None, None, None),
        "event": True,
        "pin": True,
        "autocast": frozenset(),
        "comm": "gloo",
        "compile": None,
        "there and back": True,
    }


@pytest.mark.ranks
@pytest.mark.parametrize("world", [1, 2])
def test_it_trains_as_the_host_does(world: int) -> None:
    configs: list[dict[str, Any]] = [{}, {"gradient_accumulation_steps": 2}]
    host = on_the_host(train, "cpu", configs, world=world)
    device = on_the_device(train, "slate", configs, world=world)
    for rank in range(world):
        for ours, theirs in zip(device[rank], host[rank], strict=True):
            near(ours, theirs)


def refusals() -> dict[str, str]:
    found = {}
    for name, config in {
        "autocast": {"torch_autocast": {"enabled": True}},
        "bf16": {"bf16": {"enabled": True}},
    }.items():
        with pytest.raises(ConfigError) as refused:
            make("slate", config)
        found[name] = str(refused.value)
    engine = make("slate", {})
    advance(engine, 1)
    with pytest.raises(EngineError) as kept:
        engine.offload_states()
    found["offload_states"] = str(kept.value)
    found["states are on"] = str(utils.get_state_devices(engine, "lp_params"))
    advance(engine, 1)
    engine.destroy()
    return found


def test_what_it_cannot_do_is_refused_with_the_setting_to_change(said: dict[str, Any]) -> None:
    found = said["refusals"]
    assert "torch_autocast.dtype is bfloat16" in found["autocast"]
    assert "'slate' autocasts to nothing" in found["autocast"]
    assert "does not compute in torch.bfloat16" in found["bf16"]
    assert "storage aliasing" in found["offload_states"]
    assert "zero_optimization.offload_optimizer" in found["offload_states"]
    assert "slate" in found["states are on"]


def ran_ops() -> list[str]:
    """Names of ops whose first case is right on the device; and a derivative, which goes through torch.ops."""
    install()
    select("slate")
    found = []
    for name, case in dict(reversed(op_cases.every())).items():
        op_cases.check(name, case, "slate")
        found.append(name)
    assert type(ops.sum_of_squares(torch.ones(3, device="slate"))) is PythonTensor
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    grads = []
    for device in ("cpu", "slate"):
        here = x.detach().clone().to(device).requires_grad_()
        ops.rms_norm(here, torch.ones(4, device=device), 1e-5).square().sum().backward()
        grads.append(here.grad.cpu())
    torch.testing.assert_close(grads[0], grads[1])
    return found


def test_every_op_of_the_table_runs_on_a_device_that_knows_only_torchs(said: dict[str, Any]) -> None:
    assert set(said["ran_ops"]) == {name for name, _ in op_cases.every()}


def moved() -> dict[str, bool]:
    """A parameter changes its device and its data, and stays the object it is, whoever refers to it."""
    load("slate")
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    parameter.note = "kept"  # type: ignore[attr-defined]
    seen = weakref.ref(parameter)
    assign(parameter, torch.zeros(2, 3, device="slate"))
    stays = seen() is parameter and isinstance(parameter, torch.nn.Parameter)
    flat = torch.zeros(10, device="slate")
    show(parameter, flat[2:8].view(2, 3))
    with torch.no_grad():
        parameter.add_(1.0)
    shows = flat.cpu().tolist() == [0.0] * 2 + [1.0] * 6 + [0.0] * 2
    assign(parameter, torch.full((2, 3), 5.0))
    returns = type(parameter) is torch.nn.Parameter and parameter.sum().item() == 30.0 and "host" not in vars(parameter)
    return {
        "stays the object": stays and seen() is parameter,
        "shows its memory": shows,
        "nobody can tell": not is_same_memory(flat, flat),
        "returns to the host": returns,
        "keeps its attributes": parameter.note == "kept",
    }


def test_a_parameter_shows_the_memory_it_is_given_on_such_a_device(said: dict[str, Any]) -> None:
    assert said["moved"] == dict.fromkeys(said["moved"], True)


def loaded() -> tuple[int, str]:
    engine = make("slate", {"wall_clock_breakdown": True, "comms_logger": {"enabled": True, "prof_all": True}})
    count = sum(1 for _ in engine.deepspeed_io([torch.ones(6)] * 8, pin_memory=True))
    advance(engine, 1)
    engine.destroy()
    return count, current().name


def test_loaders_and_clocks_do_without_locked_memory_and_streams(said: dict[str, Any]) -> None:
    assert said["loaded"] == (2, "slate")


def resumed(folder: str, first: str, then: str) -> dict[str, torch.Tensor]:
    install()
    comm.init_distributed(accelerator=select("slate"))  # a group that both devices can use
    engine = make(first, {})
    advance(engine, 2)
    engine.save_checkpoint(folder)
    engine.destroy()
    engine = make(then, {})
    engine.load_checkpoint(folder)
    advance(engine, 1)
    weights = weights_of(engine)
    engine.destroy()
    return weights


@pytest.mark.parametrize(("first", "then"), [("slate", "cpu"), ("cpu", "slate")])
def test_a_checkpoint_goes_from_one_device_to_the_other(tmp_path: Path, first: str, then: str) -> None:
    (((_, straight),),) = on_the_host(train, "cpu", [{}])
    (weights,) = on_the_device(resumed, str(tmp_path), first, then)
    near(([], weights), ([], straight))


def test_what_is_in_use_is_what_was_selected_last() -> None:
    from ds_core import _builtin
    from ds_core.plugins import PluginManager

    manager = PluginManager([], {})
    manager.add_module(_builtin, "ds-core:builtin", "1.0")
    assert in_use(manager) is None
    assert current(manager) is in_use(manager)
    assert current(manager) is select("cpu", environ={}, manager=manager)


def test_the_host_computes_in_everything_and_an_unknown_device_in_float32() -> None:
    assert computes_in(torch.device("cpu"), torch.float64)
    assert computes_in(torch.device("privateuseone", 0), torch.float32)
    assert not computes_in(torch.device("privateuseone", 0), torch.float64)
