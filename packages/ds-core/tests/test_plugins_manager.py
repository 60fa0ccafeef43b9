from __future__ import annotations

import logging
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ds_core.errors import ConfigError, PluginConflictError, PluginError, UnknownPluginError
from ds_core.hooks import AcceleratorEntry, Availability, MonitorEntry, OptimizerEntry, TransformEntry, hookimpl
from ds_core.part import Part
from ds_core.plugins import Candidate, PluginManager, PluginState, load_ref


def module(name: str, **hooks: Callable[..., Any]) -> types.ModuleType:
    """A plugin module with the given hooks, each registered under its keyword."""
    made = types.ModuleType(name)
    made.__file__ = f"/{name}.py"
    vars(made)["DS_HOOK_API"] = (1, 0)
    for hook, function in hooks.items():
        vars(made)[hook] = hookimpl(function)
    return made


def manager_of(*plugins: tuple[str, types.ModuleType], **environ: str) -> PluginManager:
    made = PluginManager(entry_points=[], environ=environ)
    for plugin_id, found in plugins:
        record = made.add_module(found, plugin_id, "1.0")
        assert record.state is PluginState.REGISTERED, record.reason
    return made


def offering(name: str, *entries: OptimizerEntry) -> types.ModuleType:
    def ds_optimizers() -> list[OptimizerEntry]:
        return list(entries)

    return module(name, ds_optimizers=ds_optimizers)


ADAM = OptimizerEntry("Adam", "a.b:c")


def test_items_come_in_order_of_plugin_id_with_their_plugin() -> None:
    plugins = [("wheel-b:x", offering("b", OptimizerEntry("B", "b:c"))), ("wheel-a:x", offering("a", ADAM))]
    for order in (plugins, plugins[::-1]):
        found = manager_of(*order).collect("ds_optimizers")
        assert [(p.item.name, p.record.id) for p in found] == [("Adam", "wheel-a:x"), ("B", "wheel-b:x")]


def test_a_hook_without_arguments_is_asked_once() -> None:
    asked: list[int] = []

    def ds_optimizers() -> list[OptimizerEntry]:
        asked.append(1)
        return [ADAM]

    manager = manager_of(("w:x", module("m", ds_optimizers=ds_optimizers)))
    assert manager.collect("ds_optimizers") == manager.collect("ds_optimizers")
    assert asked == [1]


def test_a_hook_that_raises_is_recorded_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    def ds_optimizers() -> list[OptimizerEntry]:
        raise OSError("gone")

    manager = manager_of(("bad:x", module("m", ds_optimizers=ds_optimizers)), ("good:x", offering("g", ADAM)))
    with caplog.at_level(logging.WARNING):
        assert [p.record.dist for p in manager.collect("ds_optimizers")] == ["good"]
    assert len(caplog.records) == 1
    (record,) = manager.problems()
    assert (record.id, record.state) == ("bad:x", PluginState.PROBE_ERROR)
    assert record.reason == "ds_optimizers raised OSError: gone"
    assert isinstance(record.exception, OSError)


def test_a_fault_is_not_forgotten_when_the_plugin_is_used() -> None:
    def ds_optimizers() -> list[OptimizerEntry]:
        raise OSError("gone")

    manager = manager_of(("bad:x", module("m", ds_optimizers=ds_optimizers)))
    manager.collect("ds_optimizers")
    manager.records[0].move(PluginState.SELECTED)
    assert manager.problems() == manager.records
    assert "ds_optimizers raised OSError: gone" in manager.records[0].describe()


def test_strict_raises_with_the_cause() -> None:
    def ds_optimizers() -> list[OptimizerEntry]:
        raise OSError("gone")

    manager = manager_of(("bad:x", module("m", ds_optimizers=ds_optimizers)), DS_PLUGINS_STRICT="1")
    with pytest.raises(PluginError, match="OSError: gone") as caught:
        manager.collect("ds_optimizers")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("hook", "returned", "message"),
    [
        ("ds_optimizers", 7, "must return an iterable of OptimizerEntry, got int"),
        ("ds_optimizers", "Adam", "must return an iterable of OptimizerEntry, got str"),
        ("ds_optimizers", [MonitorEntry("m", "s", "a:b")], "must return OptimizerEntry items, item 0 is MonitorEntry"),
        ("ds_optimizers", [OptimizerEntry("", "a:b")], "item 0 has name ''; it must be a non-empty string"),
        ("ds_optimizers", [OptimizerEntry("Adam", "a.b.c")], r"factory of OptimizerEntry must be 'package.module:att"),
        ("ds_optimizers", [ADAM, OptimizerEntry("ADAM", "d:e")], "returns 'ADAM' twice"),
        ("ds_monitors", [MonitorEntry("Big", "s", "a:b")], r"name 'Big' must be lower case .* for example 'big'"),
        ("ds_accelerators", [AcceleratorEntry("x", True, "a:b")], "is_available of accelerator 'x' must be callable"),  # type: ignore[arg-type]
        ("ds_accelerators", [AcceleratorEntry("x y", bool, "a:b")], "'x y' must be lower case"),  # type: ignore[arg-type]
    ],
)
def test_what_a_hook_may_not_return(hook: str, returned: object, message: str) -> None:
    manager = manager_of(("w:x", module("m", **{hook: lambda: returned})))
    assert manager.collect(hook) == []
    assert manager.problems() == manager.records
    assert re.search(message, manager.records[0].reason), manager.records[0].reason


def test_one_name_may_serve_two_devices() -> None:
    on_cpu = OptimizerEntry("Adam", "a:b", device_types=("cpu",))
    on_cuda = OptimizerEntry("Adam", "a:c", device_types=("cuda",))
    manager = manager_of(("w:x", offering("m", on_cpu, on_cuda)))
    assert manager.by_name("ds_optimizers", "adam", device_type="cuda").item is on_cuda


def test_generators_are_as_good_as_lists() -> None:
    def ds_optimizers():  # type: ignore[no-untyped-def]
        yield ADAM

    assert manager_of(("w:x", module("m", ds_optimizers=ds_optimizers))).collect("ds_optimizers")[0].item is ADAM


# ---- hooks with arguments


class Clip(Part):
    name = "clip"


def test_call_passes_arguments_on() -> None:
    def ds_parts(build: Any) -> list[Part]:
        return [Clip()] if build == "with" else []

    manager = manager_of(("w:x", module("m", ds_parts=ds_parts)))
    assert [p.item.name for p in manager.call("ds_parts", build="with")] == ["clip"]
    assert manager.call("ds_parts", build="without") == []


def test_a_plugins_own_error_is_the_users_to_see_as_it_is() -> None:
    def ds_parts(build: Any) -> list[Part]:
        raise ConfigError("zero_optimization.stage must be 0 to 3, got 4")

    with pytest.raises(ConfigError, match=r"^zero_optimization\.stage"):
        manager_of(("w:x", module("m", ds_parts=ds_parts))).call("ds_parts", build=None)


@pytest.mark.parametrize("fault", [KeyError("stage"), [1]])
def test_any_other_fault_while_building_names_the_wheel(fault: object) -> None:
    def ds_parts(build: Any) -> object:
        if isinstance(fault, Exception):
            raise fault
        return fault

    with pytest.raises(PluginError, match=r"ds_parts of plugin w:x \(w 1\.0\)"):
        manager_of(("w:x", module("m", ds_parts=ds_parts))).call("ds_parts", build=None)


def test_at_most_one_runner() -> None:
    def runner(answer: object) -> Callable[..., object]:
        def ds_runner(build: Any) -> object:
            return answer

        return ds_runner

    silent = ("a:x", module("a", ds_runner=runner(None)))
    one, two = ("b:x", module("b", ds_runner=runner("one"))), ("c:x", module("c", ds_runner=runner("two")))
    assert manager_of(silent).first("ds_runner", build=None) is None
    found = manager_of(silent, one).first("ds_runner", build=None)
    assert found is not None
    assert (found.item, found.record.id) == ("one", "b:x")
    with pytest.raises(PluginConflictError, match=r"2 plugins answer ds_runner, .*DS_PLUGINS_DISABLE=b:x or .*=c:x"):
        manager_of(silent, one, two).first("ds_runner", build=None)


# ---- by name


def test_the_highest_priority_wins_and_equals_are_a_conflict() -> None:
    low, high = OptimizerEntry("Adam", "a:b"), OptimizerEntry("adam", "c:d", priority=5)
    manager = manager_of(("a:x", offering("a", low)), ("b:x", offering("b", high)))
    assert manager.by_name("ds_optimizers", "ADAM").item is high
    assert manager.by_name("ds_optimizers", "a:adam").item is low
    equals = manager_of(("a:x", offering("a", low)), ("b:x", offering("b", ADAM)))
    message = (
        r"2 plugins offer optimizer 'adam': a 1\.0 .* and b 1\.0 .*\. Write a:adam or b:adam instead of adam\. "
        r"Or set DS_PLUGINS_DISABLE=a:x or DS_PLUGINS_DISABLE=b:x, or uninstall one\."
    )
    with pytest.raises(PluginConflictError, match=message):
        equals.by_name("ds_optimizers", "adam")


def test_an_unknown_name_lists_the_known_and_the_broken() -> None:
    def broken() -> list[OptimizerEntry]:
        raise OSError("gone")

    manager = manager_of(("a:x", offering("a", ADAM)), ("b:x", module("b", ds_optimizers=broken)))
    message = r"no installed wheel offers optimizer 'adm'\. Did you mean 'Adam'\? Known: Adam\. .*b:x .*OSError: gone"
    with pytest.raises(UnknownPluginError, match=message):
        manager.by_name("ds_optimizers", "adm")


def test_there_is_no_such_hook() -> None:
    with pytest.raises(PluginError, match=r"there is no hook 'ds_part'\. Did you mean 'ds_parts'\?"):
        manager_of(("a:x", offering("a", ADAM))).call("ds_part")


# ---- loading


def test_modules_of_entry_points_are_loaded_from_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("plug_from_path.py").write_text("DS_HOOK_API = (1, 0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    manager = PluginManager([Candidate("w", "1", "x", "plug_from_path"), Candidate("w", "1", "y", "a:b")], {})
    assert [r.state for r in manager.records] == [PluginState.REGISTERED, PluginState.INCOMPATIBLE]
    assert manager.records[0].location == str(tmp_path / "plug_from_path.py")
    assert "must name a module" in manager.records[1].reason


def test_environment_errors_are_kept_and_raised_on_demand() -> None:
    manager = PluginManager([], {"DS_PLUGINS": "nothing"})
    assert len(manager.environment_errors) == 1
    with pytest.raises(UnknownPluginError, match="DS_PLUGINS names 'nothing'"):
        manager.raise_problems()


def test_the_same_id_cannot_be_added_twice() -> None:
    manager = manager_of(("a:x", offering("a", ADAM)))
    with pytest.raises(PluginError, match="plugin a:x is there already"):
        manager.add_module(offering("b", ADAM), "a:x")


def test_a_module_added_later_is_asked_too() -> None:
    manager = manager_of(("a:x", offering("a", ADAM)))
    assert len(manager.collect("ds_optimizers")) == 1
    manager.add_module(offering("b", OptimizerEntry("B", "b:c")), "b:x")
    assert len(manager.collect("ds_optimizers")) == 2


def test_install_order_does_not_order_the_records() -> None:
    found = [Candidate(wheel, "1", "x", "no_such_module") for wheel in ("c", "a", "b")]
    assert [record.id for record in PluginManager(found, {}).records] == ["a:x", "b:x", "c:x"]


# ---- references


def test_load_ref_gives_the_object() -> None:
    assert load_ref("ds_core.hooks:Availability") is Availability
    assert load_ref("ds_core.part:Part.prepare") is Part.prepare
    assert TransformEntry("x", load_ref("builtins:len")).apply([]) == 0


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("ds_core.hooks", "a reference must be 'package.module:attribute', got 'ds_core.hooks'"),
        ("ds_core.hooks:", "a reference must be"),
        ("ds_core.nowhere:x", r"could not be loaded \(ModuleNotFoundError: No module named 'ds_core.nowhere'\)"),
        ("ds_core.hooks:Availabilty", r"no attribute 'Availabilty'\. Did you mean 'Availability'\?"),
    ],
)
def test_load_ref_says_what_is_wrong(ref: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        load_ref(ref)


def test_load_ref_names_the_wheel_and_chains_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("plug_heavy.py").write_text("\nimport no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    record = manager_of(("acme:x", offering("a", ADAM))).records[0]
    with pytest.raises(PluginError, match=r"'plug_heavy:x' of acme 1\.0 \(/a\.py\) .* at .*plug_heavy\.py:2") as caught:
        load_ref("plug_heavy:x", record)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
