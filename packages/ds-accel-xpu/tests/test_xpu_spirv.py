"""The modules of SPIR-V in the installed wheel, read without a driver."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from spirv_module import read

from ds_accel_xpu.libraries import built, spirv_files

HOST = Path(__file__).parent.parent / "csrc" / "host"
NO_PRODUCT_AND_SUM = {"squares", "add_squares", "check_index", "gather_rows", "replace_rows", "invert_index"}
NO_PRODUCT_AND_SUM |= {"dequantize"}

pytestmark = pytest.mark.skipif(not built().spirv, reason=f"the wheel has no SPIR-V: {built().left_out.get('spirv')}")


def host_table() -> dict[str, dict[str, str]]:
    """Signatures by module and kernel, as the host half has them."""
    table: dict[str, dict[str, str]] = {}
    for module, name, signature in re.findall(r'row\((\w+), (\w+), "(\w+)"\)', (HOST / "table.h").read_text()):
        table.setdefault(module, {})[name] = signature
    return table


def test_every_kernel_has_the_arguments_that_the_host_half_gives_it() -> None:
    found = {path.stem: read(path).signatures for path in spirv_files()}
    assert found == host_table()


def test_every_module_is_embedded() -> None:
    text = (HOST / "modules.cpp").read_text()
    listed = re.findall(r"row\((\w+)\)", text[text.index("DSK_MODULES(row)") : text.index("#define DSK_EMBED")])
    assert sorted(listed) == sorted(path.stem for path in spirv_files())


@pytest.mark.parametrize("path", spirv_files(), ids=lambda path: path.stem)
def test_a_module_asks_for_nothing_that_a_client_gpu_lacks(path: Path) -> None:
    module = read(path)
    assert module.version <= (1, 2)
    allowed = {"Addresses", "Linkage", "Kernel", "Float16Buffer", "Int64", "Int16", "Int8", "GenericPointer"}
    assert module.capabilities <= allowed


@pytest.mark.parametrize("path", spirv_files(), ids=lambda path: path.stem)
def test_no_kernel_lets_the_driver_contract_products_and_sums(path: Path) -> None:
    module = read(path)
    assert set(module.signatures) - module.contraction_off <= NO_PRODUCT_AND_SUM


@pytest.mark.skipif(shutil.which("spirv-val") is None, reason="spirv-val is not installed")
@pytest.mark.parametrize("path", spirv_files(), ids=lambda path: path.stem)
def test_a_module_is_valid(path: Path) -> None:
    done = subprocess.run(["spirv-val", "--target-env", "opencl2.2", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
