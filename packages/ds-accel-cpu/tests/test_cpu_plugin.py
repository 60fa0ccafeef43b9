from __future__ import annotations

import subprocess
import sys

import torch

from ds_accel_cpu import plugin
from ds_accel_cpu.accelerator import CpuAccelerator
from ds_accel_cpu.isa import library
from ds_core import ops
from ds_core.accelerator import Capability, select
from ds_core.ops import registry
from ds_core.ops.table import OPS
from ds_core.plugins import load_ref, manager


def test_the_plugin_module_imports_no_torch_and_starts_nothing() -> None:
    code = (
        "import sys\n"
        "from ds_accel_cpu import plugin\n"
        "list(plugin.ds_ops()), list(plugin.ds_optimizers())\n"
        "(entry,) = plugin.ds_accelerators()\n"
        "assert entry.is_available().usable, entry.is_available()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_it_is_discovered_in_good_order() -> None:
    (record,) = manager().find("ds-accel-cpu")
    assert record.is_active and not record.is_problem, record.describe()


def test_every_kernel_is_offered_and_is_in_the_table() -> None:
    served = {impl.op for impl in plugin.ds_ops()}
    assert served == set(library().kernels) - {"reduce_ranks"} and served <= set(OPS)
    for impl in plugin.ds_ops():
        assert callable(load_ref(impl.load))
        assert impl.supports is None or callable(load_ref(impl.supports))


def test_float_weights_are_left_to_the_reference() -> None:
    reason = registry.resolve("linear_weight_only", "cpu").supports
    packed = ops.pack_weight(torch.ones(16, 64), "e3m2", 64)
    assert reason is not None
    assert reason(*(None,) * 5, 6, 64, 16, "e3m2") == "its kernels multiply with integer weights, not with e3m2"
    assert reason(*(None,) * 5, 4, 64, 16) is None
    assert torch.equal(ops.linear_weight_only(torch.ones(2, 64), packed), torch.full((2, 16), 64.0))


def test_calls_on_the_cpu_go_to_it() -> None:
    ops.sum_of_squares(torch.ones(3))
    row = next(r for r in ops.implementations() if r.op == "sum_of_squares" and r.device_type == "cpu")
    assert row.provider.startswith("ds-accel-cpu ") and row.chosen and row.loaded
    assert registry.resolve("sum_of_squares", "cpu").provider == row.provider


def test_the_cpu_is_a_floor_and_answers_to_its_name() -> None:
    (entry,) = plugin.ds_accelerators()
    assert (entry.name, entry.is_floor, entry.priority) == ("cpu", True, 10)
    chosen = select("cpu", environ={})
    assert type(chosen) is CpuAccelerator
    assert chosen.device() == torch.device("cpu") and chosen.has(Capability.DATA_PTR)
    assert chosen.properties()["kernels"] == library().target


def test_the_report_names_level_features_and_threads() -> None:
    rows = {row.name: row for row in plugin.ds_report()}
    assert rows["kernel library"].value.startswith(library().target) and rows["kernel library"].status == "ok"
    assert library().target in rows["levels usable here"].value
    assert rows["threads"].value.startswith(str(torch.get_num_threads()))
