from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_core.errors import PluginError, UnknownPluginError
from ds_core.plugins.records import PluginState
from ds_core.plugins.scan import Candidate
from ds_core.plugins.switches import Switches, check_names, decide

LOAD, BLOCKED, SHADOWED = PluginState.DISCOVERED, PluginState.BLOCKED, PluginState.SHADOWED
CORE = Candidate("ds-core", "1.0", "builtin", "ds_core._builtin", "/site")
ZERO = Candidate("ds-zero", "1.0", "zero", "ds_zero.plugin", "/site")
FOO = Candidate("ds-accel-foo", "0.9", "foo", "ds_accel_foo.plugin", "/site")
FOO_TOO = Candidate("Acme_DS.foo", "2.0", "foo", "acme.plugin", "/src")
FAKE_ZERO = Candidate("acme-zero", "3.0", "zero", "acme_zero", "/site")
ALL = (CORE, ZERO, FOO, FOO_TOO, FAKE_ZERO)


def states(*candidates: Candidate, **environ: str) -> list[PluginState]:
    return [decision.state for decision in decide(candidates, Switches.read(environ))]


def test_without_switches_everything_is_loaded() -> None:
    assert states(CORE, ZERO, FOO) == [LOAD, LOAD, LOAD]


@pytest.mark.parametrize("name", ["foo", "ds-accel-foo", "DS_Accel.Foo", "ds-accel-foo:foo"])
def test_short_name_wheel_and_full_id_all_work(name: str) -> None:
    assert states(CORE, ZERO, FOO, DS_PLUGINS=name) == [LOAD, BLOCKED, LOAD]
    assert states(CORE, ZERO, FOO, DS_PLUGINS_DISABLE=name) == [LOAD, LOAD, BLOCKED]


def test_disable_is_stronger_than_allow_and_core_is_never_left_out() -> None:
    assert states(CORE, ZERO, FOO, DS_PLUGINS="zero,foo", DS_PLUGINS_DISABLE="foo") == [LOAD, LOAD, BLOCKED]
    assert states(CORE, ZERO, DS_PLUGINS_AUTOLOAD="0") == [LOAD, BLOCKED]
    assert states(CORE, ZERO, DS_PLUGINS_AUTOLOAD="0", DS_PLUGINS="zero") == [LOAD, LOAD]


def test_a_short_name_from_two_wheels_leaves_both_out() -> None:
    assert states(FOO, FOO_TOO) == [SHADOWED, SHADOWED]
    assert states(FOO, FOO_TOO, DS_PLUGINS="foo") == [SHADOWED, SHADOWED]


@pytest.mark.parametrize("line", ["ds-accel-foo:foo", "ds-accel-foo"])
def test_naming_one_by_its_wheel_decides(line: str) -> None:
    assert states(FOO, FOO_TOO, DS_PLUGINS=line) == [LOAD, BLOCKED]
    assert states(FOO, FOO_TOO, DS_PLUGINS=f"{line},foo") == [LOAD, BLOCKED]
    assert states(FOO, FOO_TOO, DS_PLUGINS_DISABLE=line) == [BLOCKED, LOAD]


def test_the_message_names_both_wheels_versions_paths_and_the_line() -> None:
    (first, _) = decide([FOO, FOO_TOO], Switches())
    assert first.reason == (
        "2 wheels offer a plugin named 'foo': Acme_DS.foo 2.0 (/src) and ds-accel-foo 0.9 (/site). "
        "To use ds-accel-foo:foo, set DS_PLUGINS_DISABLE=acme-ds-foo:foo, or uninstall the other"
    )


def test_a_stranger_with_a_reserved_name_stays_out_and_does_not_disturb_the_owner() -> None:
    assert states(ZERO, FAKE_ZERO) == [LOAD, SHADOWED]
    assert states(FAKE_ZERO) == [SHADOWED]
    assert states(ZERO, FAKE_ZERO, DS_PLUGINS="zero") == [LOAD, BLOCKED]
    assert states(ZERO, FAKE_ZERO, DS_PLUGINS="acme-zero:zero") == [BLOCKED, LOAD]


@given(st.permutations(ALL), st.sampled_from(["", "foo", "acme-ds-foo:foo", "zero", "acme-zero,ds-zero"]))
def test_install_order_decides_nothing(order: list[Candidate], allow: str) -> None:
    switches = Switches.read({"DS_PLUGINS": allow})
    expected = dict(zip(ALL, decide(ALL, switches), strict=True))
    assert dict(zip(order, decide(order, switches), strict=True)) == expected


def test_unknown_names_are_errors_with_the_nearest() -> None:
    with pytest.raises(UnknownPluginError, match=r"DS_PLUGINS names 'zreo', which matches .* Did you mean 'zero'\?"):
        check_names("DS_PLUGINS", ["zreo"], ALL)
    for good in ("zero", "foo", "acme-ds-foo", "acme-zero:zero"):
        check_names("DS_PLUGINS", [good], ALL)


def test_a_reserved_name_held_by_a_stranger_only_asks_for_the_full_id() -> None:
    message = r"'zero', which is reserved for ds-zero \(not installed\); acme-zero 3.0 .*: DS_PLUGINS=acme-zero:zero\."
    with pytest.raises(UnknownPluginError, match=message):
        check_names("DS_PLUGINS", ["zero"], [FAKE_ZERO])


def test_a_name_hidden_by_another_version_of_its_wheel_names_both_paths() -> None:
    hidden = Candidate("ds-zero", "0.1", "old", "ds_zero.old", "/stale", hidden_by="/site")
    with pytest.raises(UnknownPluginError, match=r"ds-zero 0\.1 \(/stale\), but another version .*\(/site\)"):
        check_names("DS_PLUGINS", ["ds-zero:old"], [ZERO, hidden])
    assert states(ZERO, hidden) == [LOAD, SHADOWED]


@pytest.mark.parametrize("name", ["builtin", "ds-core", "ds-core:builtin"])
def test_core_cannot_be_disabled(name: str) -> None:
    with pytest.raises(PluginError, match="is ds-core itself and cannot be disabled"):
        check_names("DS_PLUGINS_DISABLE", [name], ALL)


@pytest.mark.parametrize(
    ("switch", "value"), list(itertools.product(["DS_PLUGINS_AUTOLOAD", "DS_PLUGINS_STRICT"], ["yes", "2"]))
)
def test_switches_are_0_or_1(switch: str, value: str) -> None:
    with pytest.raises(PluginError, match=f"{switch} must be 0 or 1, got '{value}'"):
        Switches.read({switch: value})
