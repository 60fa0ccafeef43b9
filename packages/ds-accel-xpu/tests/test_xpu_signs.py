from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ds_accel_xpu.signs import Signs, driver_version, read_signs, why_unusable

GOOD = Signs("2.13.0+xpu", True, ("renderD128",), (), "xe 1.1", True, True)


def test_nothing_is_missing_on_a_good_machine() -> None:
    assert why_unusable(GOOD) == ""


@pytest.mark.parametrize(
    ("change", "reason", "remedy"),
    [
        ({"torch_version": ""}, "torch is not installed", "pip install torch"),
        ({"torch_xpu": False}, "torch 2.13.0+xpu was built without XPU", "download.pytorch.org/whl/xpu"),
        ({"nodes": ()}, "no Intel GPU", "--device /dev/dri"),
        ({"closed_nodes": ("renderD128",)}, "no permission to open /dev/dri/renderD128", "usermod -aG render"),
        ({"loader": False}, "no Level Zero loader", "apt-get install libze1"),
    ],
)
def test_what_is_missing_is_said_with_its_remedy(change: dict[str, object], reason: str, remedy: str) -> None:
    told = why_unusable(dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]
    assert told.startswith(reason) and remedy in told


def test_nodes_are_not_asked_for_where_there_are_none() -> None:
    assert why_unusable(dataclasses.replace(GOOD, nodes=(), linux=False)) == ""


def test_one_open_node_is_enough() -> None:
    assert (
        why_unusable(dataclasses.replace(GOOD, nodes=("renderD128", "renderD129"), closed_nodes=("renderD129",))) == ""
    )


def node(root: Path, name: str, vendor: str, module: str = "xe", version: str = "") -> Path:
    """A render node as the kernel shows it."""
    found = root / "sys" / "class" / "drm" / name
    home = root / "sys" / "module" / module
    home.mkdir(parents=True, exist_ok=True)
    (found / "device" / "driver").mkdir(parents=True)
    (found / "device" / "vendor").write_text(vendor + "\n")
    (found / "device" / "driver" / "module").symlink_to(home)
    if version:
        (home / "version").write_text(version + "\n")
    (root / "dev" / "dri").mkdir(parents=True, exist_ok=True)
    (root / "dev" / "dri" / name).touch()
    return found


def test_nodes_of_other_vendors_are_left_out(tmp_path: Path) -> None:
    node(tmp_path, "renderD128", "0x1002")
    node(tmp_path, "renderD129", "0x8086", "i915")
    found = read_signs(tmp_path)
    assert found.nodes == ["renderD129"] and found.closed_nodes == []
    assert found.kernel_driver == "i915 of the Linux kernel"


def test_a_machine_without_the_folders_shows_nothing(tmp_path: Path) -> None:
    found = read_signs(tmp_path)
    assert found.nodes == [] and found.kernel_driver == ""


def test_a_node_that_cannot_be_opened_is_closed(tmp_path: Path) -> None:
    node(tmp_path, "renderD128", "0x8086")
    (tmp_path / "dev" / "dri" / "renderD128").unlink()  # root may open everything but what is not there
    assert read_signs(tmp_path).closed_nodes == ["renderD128"]


def test_the_version_of_a_driver_from_outside_of_the_kernel(tmp_path: Path) -> None:
    assert driver_version(node(tmp_path, "renderD128", "0x8086", "i915", "1.25.2")) == "i915 1.25.2"
