from __future__ import annotations

import logging
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ds_core.errors import OpError, PluginConflictError, PluginError
from ds_core.hooks import AcceleratorEntry, Availability, OpImpl, Proof, hookimpl
from ds_core.ops import registry
from ds_core.plugins import PluginManager

# Stand-ins for kernels that a reference can name: operator.neg "runs", builtins.repr always gives a reason.
KERNEL = "operator:neg"
REFUSES = "builtins:repr"


def offering(*entries: OpImpl) -> types.ModuleType:
    def ds_ops() -> list[OpImpl]:
        return list(entries)

    made = types.ModuleType("offering")
    made.__file__ = "/offering.py"
    hook: Callable[..., Any] = hookimpl(ds_ops)
    vars(made).update(DS_HOOK_API=(1, 0), ds_ops=hook)
    return made


def manager_of(**wheels: tuple[OpImpl, ...]) -> PluginManager:
    made = PluginManager(entry_points=[], environ={})
    for wheel, entries in wheels.items():
        made.add_module(offering(*entries), f"{wheel}:ops", "1.0")
    return made


X = torch.tensor([1.0, 2.0])


def test_without_a_wheel_the_reference_runs_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ds_core.ops.registry"):
        found = registry.look_up("sum_of_squares", "cpu", manager_of())
    assert found.native is None and found.provider == "reference"
    assert found(X).item() == 5.0
    (record,) = caplog.records
    assert "op sum_of_squares on cpu runs the PyTorch reference: no installed wheel brings" in record.getMessage()


def test_a_wheels_kernel_runs() -> None:
    found = registry.look_up("sum_of_squares", "cpu", manager_of(w=(OpImpl("sum_of_squares", "cpu", KERNEL),)))
    assert found.provider == "w 1.0"
    assert torch.equal(found(X), -X)


def test_a_kernel_for_another_device_does_not_run() -> None:
    found = registry.look_up("sum_of_squares", "cpu", manager_of(w=(OpImpl("sum_of_squares", "cuda", KERNEL),)))
    assert found.native is None


def test_the_higher_priority_wins_whatever_the_order() -> None:
    low = OpImpl("sum_of_squares", "cpu", "operator:pos", priority=1)
    high = OpImpl("sum_of_squares", "cpu", KERNEL, priority=2)
    for wheels in ({"a": (low,), "b": (high,)}, {"a": (high,), "b": (low,)}):
        assert torch.equal(registry.look_up("sum_of_squares", "cpu", manager_of(**wheels))(X), -X)


def test_equal_priority_is_a_conflict_that_names_both_wheels() -> None:
    entry = OpImpl("sum_of_squares", "cpu", KERNEL)
    manager = manager_of(first=(entry,), second=(entry,))
    with pytest.raises(PluginConflictError) as caught:
        registry.look_up("sum_of_squares", "cpu", manager)
    text = str(caught.value)
    assert "first 1.0" in text and "second 1.0" in text
    assert "DS_PLUGINS_DISABLE=first:ops or DS_PLUGINS_DISABLE=second:ops" in text


def test_what_a_kernel_does_not_support_runs_the_reference_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    manager = manager_of(w=(OpImpl("sum_of_squares", "cpu", KERNEL, supports=REFUSES),))
    found = registry.look_up("sum_of_squares", "cpu", manager)
    with caplog.at_level(logging.INFO, "ds_core.ops.registry"):
        assert [found(X).item() for _ in range(3)] == [5.0] * 3
    assert len(caplog.records) == 1
    assert "w 1.0 does not serve this call: tensor([1., 2.])" in caplog.records[0].getMessage()


def test_a_kernel_that_serves_a_call_runs() -> None:
    def never(x: torch.Tensor) -> None:
        return None

    found = registry.look_up("sum_of_squares", "cpu", manager_of(w=(OpImpl("sum_of_squares", "cpu", KERNEL),)))
    found.supports = never
    assert torch.equal(found(X), -X)


def test_a_kernel_that_cannot_be_loaded_is_an_error() -> None:
    manager = manager_of(w=(OpImpl("sum_of_squares", "cpu", "ds_core.no_such_module:kernel"),))
    with pytest.raises(PluginError, match="no_such_module"):
        registry.look_up("sum_of_squares", "cpu", manager)


def test_an_unknown_op_is_an_error_and_one_that_a_wheel_brings_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OpError, match="no op 'future'"):
        registry.look_up("future", "cpu", manager_of())
    registry.look_up("sum_of_squares", "cpu", manager_of(w=(OpImpl("future", "cpu", KERNEL),)))
    assert any("w 1.0 brings op 'future', which is not in the op table" in r.getMessage() for r in caplog.records)


def test_the_listing_has_every_implementation_and_marks_the_chosen() -> None:
    low = OpImpl("sum_of_squares", "cpu", "operator:pos", priority=1)
    high = OpImpl("sum_of_squares", "cpu", KERNEL, priority=2)
    rows = [r for r in registry.implementations(manager_of(a=(low,), b=(high,))) if r.op == "sum_of_squares"]
    assert [(r.device_type, r.provider, r.priority, r.reference, r.chosen) for r in rows] == [
        ("cpu", "b 1.0", 2, False, True),
        ("cpu", "a 1.0", 1, False, False),
        ("any", "reference", 0, True, True),
    ]


def test_a_lookup_is_made_once_until_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    real = registry.look_up

    def counted(name: str, device_type: str) -> registry.Resolved:
        asked.append((name, device_type))
        return real(name, device_type, manager_of())

    monkeypatch.setattr(registry, "look_up", counted)
    registry.forget()
    try:
        for _ in range(3):
            registry.resolve("sum_of_squares", "cpu")
        assert asked == [("sum_of_squares", "cpu")]
        registry.forget()
        registry.resolve("sum_of_squares", "cpu")
        assert len(asked) == 2
    finally:
        registry.forget()


# ---- kernels that were never run on hardware

UNPROVEN = (Proof.EMULATED, Proof.COMPILED)
RIGHT = "ds_core.ops._sum_of_squares:_reference"


@pytest.mark.parametrize("proof", UNPROVEN)
def test_an_unproven_kernel_that_is_wrong_is_not_used(proof: Proof, caplog: pytest.LogCaptureFixture) -> None:
    wheels = manager_of(w=(OpImpl("sum_of_squares", "cpu", KERNEL, proof=proof),))
    found = registry.look_up("sum_of_squares", "cpu", wheels)
    assert (found.provider, found(X).item()) == ("reference", 5.0)
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "the kernel of w 1.0 was never run on such a device before, and it " in record.getMessage()
    assert "DS_KERNEL_SELFTEST=0 uses it all the same" in record.getMessage()


def test_an_unproven_kernel_that_agrees_is_used() -> None:
    wheels = manager_of(w=(OpImpl("sum_of_squares", "cpu", RIGHT, proof=Proof.EMULATED),))
    assert registry.look_up("sum_of_squares", "cpu", wheels).provider == "w 1.0"


def test_the_check_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_KERNEL_SELFTEST", "0")
    wheels = manager_of(w=(OpImpl("sum_of_squares", "cpu", KERNEL, proof=Proof.COMPILED),))
    assert torch.equal(registry.look_up("sum_of_squares", "cpu", wheels)(X), -X)


def test_what_was_executed_on_a_cpu_is_as_good_as_new_on_another_device(caplog: pytest.LogCaptureFixture) -> None:
    wheels = manager_of(w=(OpImpl("sum_of_squares", "meta", KERNEL, proof=Proof.EXECUTED),))
    assert registry.look_up("sum_of_squares", "meta", wheels).provider == "reference"
    assert "the kernel of w 1.0 was never run on such a device before" in caplog.text


def test_a_proven_kernel_is_taken_at_its_word() -> None:
    for proof in set(Proof) - set(UNPROVEN):
        wheels = manager_of(w=(OpImpl("sum_of_squares", "cpu", KERNEL, proof=proof),))
        assert registry.look_up("sum_of_squares", "cpu", wheels).provider == "w 1.0"


# ---- devices that share a torch device type


def sharing(usable: str) -> PluginManager:
    """Wheels a and b, with an accelerator each of that name and a kernel for the CPU; one of them is usable."""
    made = PluginManager(entry_points=[], environ={})
    for name in ("a", "b"):
        module = offering(OpImpl("sum_of_squares", "cpu", KERNEL, accelerator=name))
        answer = Availability(name == usable, "" if name == usable else "no driver")
        entries = [AcceleratorEntry(name, lambda answer=answer: answer, "nowhere:at_all")]
        hook: Callable[..., Any] = hookimpl(lambda entries=entries: entries)
        vars(module).update(ds_accelerators=hook)
        made.add_module(module, f"{name}:ops", "1.0")
    return made


@pytest.mark.parametrize("usable", ["a", "b"])
def test_of_two_that_share_a_device_type_the_usable_one_serves(usable: str) -> None:
    assert registry.look_up("sum_of_squares", "cpu", sharing(usable)).provider == f"{usable} 1.0"


def test_neither_serves_where_neither_is_usable() -> None:
    assert registry.look_up("sum_of_squares", "cpu", sharing("none")).provider == "reference"


def test_both_are_listed_each_under_its_own_name() -> None:
    found = [row for row in registry.implementations(sharing("a")) if row.op == "sum_of_squares" and not row.reference]
    assert [(row.device, row.device_type, row.chosen) for row in found] == [("a", "cpu", True), ("b", "cpu", True)]
