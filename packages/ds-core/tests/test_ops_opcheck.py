"""torch's own check of every op of the table: schema, autograd, fake tensors, and compiled with dynamic shapes.

It runs what is installed: kernels where a wheel brings them, references elsewhere, and the references once more apart.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing._internal.optests import OpCheckError

from ds_core import ops
from ds_core.ops import registry
from ds_core.ops.case import Fill, OpCase
from ds_core.ops.table import OPS, op
from ds_core.testing import op_cases

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def elements(case: OpCase) -> int:
    return sum(torch.Size(spec.shape).numel() for spec in case.tensors.values() if spec is not None)


def chosen(name: str) -> list[OpCase]:
    """A small case and a middle one, without NaNs, and between them every optional tensor given and left out."""
    plain = [
        case
        for case in op_cases.cases(name)
        if elements(case) and all(spec is None or spec.fill is not Fill.SPECIAL for spec in case.tensors.values())
    ]
    ordered = sorted(plain, key=elements)
    picked = {case.name: case for case in (ordered[0], ordered[len(ordered) // 2])}
    for absent in (True, False):
        for key in sorted({key for case in plain for key in case.tensors}):
            fitting = [case for case in ordered if (case.tensors.get(key) is None) == absent]
            if fitting and not any(case in picked.values() for case in fitting):
                picked[fitting[0].name] = fitting[0]
    return list(picked.values())


def run_checks(name: str, case: OpCase) -> None:
    call = op_cases.build(name, case)
    if op(name).definition().autograd is not None:
        for tensor in call.tensors.values():
            if tensor is not None and tensor.dtype.is_floating_point:
                tensor.requires_grad_()
    registered = getattr(torch.ops.ds, name).default
    given = {**call.tensors, **call.scalars}
    arguments, named = [], {}
    for place, argument in enumerate(registered._schema.arguments):
        if argument.name in given and place == len(arguments) and not argument.kwarg_only:
            arguments.append(given[argument.name])
        elif argument.name in given:
            named[argument.name] = given[argument.name]
    torch.library.opcheck(registered, tuple(arguments), named, test_utils=CHECKS)


# torch 2.14's own check reads the gradients of the copies that it makes of its arguments.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")

PARAMETERS = [pytest.param(name, case, id=f"{name}-{case.name}") for name in OPS for case in chosen(name)]


@pytest.mark.parametrize(("name", "case"), PARAMETERS)
def test_what_is_installed_passes(name: str, case: OpCase) -> None:
    assert ops.adam_ is not None  # registers the ops
    run_checks(name, case)


@pytest.mark.parametrize("name", list(OPS))
def test_the_reference_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = op(name).definition().reference
    resolved = registry.Resolved(name, "cpu", None, None, reference, "reference", set())
    monkeypatch.setitem(registry._resolved, (name, "cpu"), resolved)
    run_checks(name, chosen(name)[0])


def test_an_op_whose_shapes_are_wrong_does_not_pass() -> None:
    library = torch.library.Library("ds_test_opcheck", "DEF")
    library.define("half(Tensor x) -> Tensor")
    library.impl("half", lambda x: x[: x.shape[0] // 2].clone(), "CompositeExplicitAutograd")
    torch.library.register_fake("ds_test_opcheck::half", torch.empty_like, lib=library)
    with pytest.raises(OpCheckError, match="test_faketensor"):
        torch.library.opcheck(torch.ops.ds_test_opcheck.half.default, (torch.ones(4),), test_utils=CHECKS)
