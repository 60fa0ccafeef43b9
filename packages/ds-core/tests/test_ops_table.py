from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError
from ds_core.ops.table import OPS, op
from ds_core.testing import op_cases


def test_listing_ops_and_implementations_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from ds_core import ops\n"
        "rows = ops.implementations()\n"
        "assert {row.op for row in rows} == set(ops.OPS), rows\n"
        "assert all(any(r.reference for r in rows if r.op == name) for name in ops.OPS)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_op_is_defined_and_registered_under_its_name() -> None:
    assert ops.adam_ is not None  # defines the ops
    for name, row in OPS.items():
        definition = row.definition()
        assert definition.name == name
        registered = getattr(torch.ops.ds, name).default
        assert str(registered._schema).startswith(f"ds::{name}(")
        assert definition.cases, name


def test_an_unknown_op_names_the_nearest() -> None:
    with pytest.raises(OpError, match=r"no op 'adm_'.*'adam_'"):
        op("adm_")


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = ops.nope


def test_every_public_name_is_there() -> None:
    for name in ops.__all__:
        assert getattr(ops, name) is not None


def test_case_names_are_unique_and_cases_build() -> None:
    seen = set()
    for name, case in op_cases.every():
        assert (name, case.name) not in seen
        seen.add((name, case.name))
        call = op_cases.build(name, case)
        definition = op(name).definition()
        definition.check(**call.tensors, **call.scalars)


@pytest.mark.parametrize("name", list(OPS))
def test_shape_functions_agree_with_the_references(name: str) -> None:
    definition = op(name).definition()
    for case in op_cases.cases(name):
        call = op_cases.build(name, case)
        fake = op_cases.as_tuple(definition.fake(**call.tensors, **call.scalars))
        real = op_cases.as_tuple(definition.reference(**call.tensors, **call.scalars))
        assert [(t.shape, t.dtype, t.is_contiguous()) for t in fake] == [
            (t.shape, t.dtype, t.is_contiguous()) for t in real
        ], case.name
