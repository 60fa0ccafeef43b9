"""What ``ds report`` says of the accelerators that installed wheels offer."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from ds_core.cli._devices import device_rows
from ds_core.hooks import AcceleratorEntry, Availability, OpImpl, Proof, ReportRow, hookimpl
from ds_core.plugins import PluginManager

FACTS = """
from ds_core.hooks import DeviceFacts, Mismatch

def facts():
    return DeviceFacts(
        built_for="toy 3 for sm_1",
        driver="2.9",
        libraries={"torch.toy": "0.4"},
        left_out=["kernels for toy 2: no compiler"],
        mismatches=[
            Mismatch("toy driver", "3.0", "3.0 or newer", "2.9", "Install driver 3.0."),
            Mismatch("torch", "toy 3", "a build with toy", "none", "pip install torch-toy."),
        ],
        unproven=["graphs"],
    )

def breaks():
    raise OSError("libtoy.so: cannot open")
"""


@pytest.fixture(autouse=True)
def toy_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("toy_facts.py").write_text(FACTS)
    monkeypatch.syspath_prepend(tmp_path)


def report(answer: Availability, facts: str | None = None, nodes: Sequence[str] = ()) -> dict[str, ReportRow]:
    made = types.ModuleType("toy_plugin")
    made.__file__ = "/toy_plugin.py"
    entry = AcceleratorEntry("toy", lambda: answer, "toy_facts:none", device_nodes=nodes, facts=facts)
    ops = [
        OpImpl("adam_", "toy", "toy_facts:none", proof=Proof.EMULATED),
        OpImpl("sgd_", "toy", "toy_facts:none", proof=Proof.EMULATED),
        OpImpl("lion_", "toy", "toy_facts:none", proof=Proof.COMPILED),
    ]
    hooks = {"ds_accelerators": hookimpl(lambda: [entry]), "ds_ops": hookimpl(lambda: ops)}
    vars(made).update(DS_HOOK_API=(1, 2), **hooks)
    manager = PluginManager([], {})
    manager.add_module(made, "ds-accel-toy:toy", "1.2")
    rows = [row for row in device_rows(manager) if row.section == "accelerator ds-accel-toy:toy"]
    return {row.name: row for row in rows}


def test_a_usable_device() -> None:
    rows = report(Availability(True, "", 2))
    assert rows["wheel"].value == "ds-accel-toy 1.2"
    assert rows["found"].value == "yes, 2 devices"
    assert (rows["usable"].value, rows["usable"].status) == ("yes, available, priority 100", "ok")
    assert rows["native ops"].value.startswith("3 of ")
    assert rows["native ops"].value.endswith("(2 emulated, 1 compiled)")


def test_why_a_device_is_not_usable() -> None:
    rows = report(Availability(False, "no driver"), nodes=("/dev/toy[0-9]*",))
    assert rows["found"].value == "no: none of /dev/toy[0-9]*"
    assert (rows["usable"].value, rows["usable"].status) == ("no, unavailable: no driver", "info")


def test_hardware_that_is_there_and_cannot_be_used() -> None:
    assert report(Availability(False, "no driver"), nodes=("/dev/nul*",))["found"].value == "yes, by /dev/nul*"


def test_versions_and_every_mismatch_with_its_remedy() -> None:
    rows = report(Availability(True, "", 1), "toy_facts:facts")
    assert rows["built for"].value == "toy 3 for sm_1"
    assert rows["driver"].value == "2.9"
    assert rows["torch.toy"].value == "0.4"
    driver = rows["mismatch: toy driver"]
    assert driver.value == "built for 3.0, needs 3.0 or newer, found 2.9. Install driver 3.0."
    assert driver.status == "error"
    assert "mismatch: torch" in rows
    assert rows["left out"].value == "kernels for toy 2: no compiler"
    assert rows["unproven on hardware"].value == "graphs"


def test_a_mismatch_is_no_error_where_the_device_is_not_used() -> None:
    assert report(Availability(False, "no driver"), "toy_facts:facts")["mismatch: torch"].status == "info"


def test_facts_that_cannot_be_had_do_not_end_the_report() -> None:
    row = report(Availability(True, "", 1), "toy_facts:breaks")["facts"]
    assert (row.value, row.status) == ("OSError: libtoy.so: cannot open", "error")
