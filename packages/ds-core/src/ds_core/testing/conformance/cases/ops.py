"""Level 5: every op of the op table on the device, every case, against the reference on the host; a case an op."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ds_core.accelerator.contract import Capability
from ds_core.errors import OpError
from ds_core.ops.table import OPS
from ds_core.testing.conformance.case import Group, Needs
from ds_core.testing.conformance.kit import Broken, Kit
from ds_core.testing.conformance.lazy import torch

if TYPE_CHECKING:
    from ds_core.ops.case import Exactness, OpCase
    from ds_core.testing.conformance.bench import OpUnderTest

__all__ = ["GROUPS"]

OPS_GROUP = Group("ops", level=5)
CHECKS = Group("opcheck", level=5)
WHEEL = Group("op_entries", level=5)
GROUPS = (OPS_GROUP, CHECKS, WHEEL)

SHOWN = 5
"""Failing cases of an op that the report tells in full."""

TORCH_CHECKS = ("test_schema", "test_faketensor")

_LENIENT = {"float64": 1e-5, "float32": 1e-5, "bfloat16": 1.6e-2, "float16": 2e-3}
"""Bound by dtype of an output where the reference runs on the device: torch's kernels there round as they may."""

_NOT_SERVED = "refused the call (status 2)"
"""DS_UNSUPPORTED_DTYPE of ds_kernel.h, as the launchers word it."""

_LENIENT_CODES = 0.01
"""Share of whole numbers that may be one off there: a code that lay between two."""


def _every_case(kit: Kit, name: str) -> None:
    from ds_core.testing import op_cases

    op, cases = kit.bench.op(name), op_cases.cases(name)
    serveable = [case for case in cases if not _missing_dtypes(kit, case)]
    kit.figures |= {"cases": len(cases), "run": len(serveable), "provider": op.provider, "native": 0}
    if not serveable:
        missing = ", ".join(sorted({dtype for case in cases for dtype in _missing_dtypes(kit, case)}))
        kit.lacks("dtype", missing, f"every case of {name} needs a dtype that the device does not list: {missing}")
    failed, refused = list[str](), list[str]()
    for case in serveable:
        sys.stderr.write(f"{name}, case {case.name}\n")  # the last line tells which one a crash was in
        try:
            _one_case(kit, op, name, case)
        except _NoRow as missing_row:
            kit.lacks("row", name, str(missing_row))
        except _Refused as refusal:
            refused.append(str(refusal))
        except Exception as error:  # noqa: BLE001 - the others go on; all are told together
            failed.append(_first_lines(error))
    if refused:
        kit.figures["refused"] = len(refused)
        kit.note(f"{len(refused)} of {len(serveable)} cases are refused by the library: {refused[0]}")
    if len(refused) == len(serveable):
        kit.lacks("row", name, refused[0])
    if failed:
        more = "" if len(failed) <= SHOWN else f"\nand {len(failed) - SHOWN} more"
        got = f"{len(failed)} of {len(serveable)} cases fail:\n" + "\n".join(failed[:SHOWN]) + more
        raise Broken(f"every case of {name} within its bound of the reference", got)


class _Refused(Exception):
    """The kernel of a library does not serve the dtypes; in a wheel its ``supports`` says so before."""


class _NoRow(Exception):
    """The library has no row for the op."""


def _one_case(kit: Kit, op: OpUnderTest, name: str, case: OpCase) -> None:
    from ds_core.ops.table import op as row
    from ds_core.testing import op_cases

    definition = row(name).definition()
    wanted_call = op_cases.build(name, case)
    call = wanted_call.clone().to(op.device)
    arguments = {**call.tensors, **call.scalars}
    definition.check(**arguments)
    is_native = op.native(**arguments)
    wanted = definition.reference(**wanted_call.tensors, **wanted_call.scalars)
    try:
        found = op.call(**arguments)
    except OpError as error:
        raise _NoRow(str(error)) from error
    except RuntimeError as error:
        if kit.bench.is_library and _NOT_SERVED in str(error):
            raise _Refused(str(error)) from error
        raise
    kit.figures["native"] = int(kit.figures["native"]) + is_native
    outputs = zip(op_cases.as_tuple(found), op_cases.as_tuple(wanted), strict=True)
    pairs = [(f"output {index}", ours, theirs) for index, (ours, theirs) in enumerate(outputs)]
    changed = ((key, call.tensors[key], theirs) for key, theirs in wanted_call.tensors.items())
    pairs += [(f"argument {key}", mine, theirs) for key, mine, theirs in changed if mine is not None is not theirs]
    for what, ours, theirs in pairs:
        place = f"{name}, case {case.name}: {what}"
        if theirs.dtype == torch.float64 and ours.dtype == torch.float32 and not _has_float64(op):
            theirs, is_native = theirs.float(), False  # what is asked of devices without float64
        if is_native:
            op_cases.compare(ours.cpu(), theirs, case.exactness, place)
        else:
            _compare_leniently(ours.cpu(), theirs, case.exactness, place)


def _compare_leniently(ours: torch.Tensor, theirs: torch.Tensor, exactness: Exactness, place: str) -> None:
    from ds_core.ops.case import Exactness
    from ds_core.testing import op_cases

    if theirs.dtype.is_floating_point:
        bound = max(exactness.relative, _LENIENT[str(theirs.dtype).removeprefix("torch.")])
        op_cases.compare(ours, theirs, Exactness(exactness.ulps, bound), place)
        return
    off = int((ours != theirs).sum()) if ours.shape == theirs.shape else 0
    if not off or off > max(1, _LENIENT_CODES * theirs.numel()):
        op_cases.compare(ours, theirs, exactness, place)


def _has_float64(op: OpUnderTest) -> bool:
    from ds_core.ops.wide import wide_dtype

    return wide_dtype(op.device) == torch.float64


def _missing_dtypes(kit: Kit, case: OpCase) -> set[str]:
    """Dtypes of the arguments that the device does not list."""
    needed = {spec.dtype for spec in case.tensors.values() if spec is not None}
    if "dtype" in case.scalars:
        needed.add(str(case.scalars["dtype"]))
    return {dtype for dtype in needed if kit.bench.unmet(Needs(dtypes=(dtype,), kernels=True)) is not None}


def _first_lines(error: Exception) -> str:
    text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    return "\n".join(text.splitlines()[:4])


OPS_GROUP.each(
    "through the op registry every op gives the reference's results: kernels of the wheel within the bound of each "
    "case, the reference on the device within the rounding of its dtype",
    list(OPS),
    _every_case,
    lambda name: Needs(kernels=True),
)


def _torch_checks(kit: Kit, name: str) -> None:
    """torch's own check of one small call and a middle one, and their gradients."""
    from ds_core import ops
    from ds_core.ops.table import op as row

    kit.expect(callable(ops.adam_), "the ops to be registered with torch", ops.adam_)
    registered: Any = getattr(torch.ops.ds, name).default
    differentiable = row(name).definition().autograd is not None
    for case in _small_and_middle(kit, name):
        arguments, named = _bound_arguments(kit, registered, name, case, differentiable)
        torch.library.opcheck(registered, tuple(arguments), named, test_utils=TORCH_CHECKS)
        if differentiable:
            _compare_gradients(kit, registered, name, case)


def _small_and_middle(kit: Kit, name: str) -> list[OpCase]:
    from ds_core.ops.case import Fill
    from ds_core.testing import op_cases

    def elements(case: OpCase) -> int:
        return sum(torch.Size(spec.shape).numel() for spec in case.tensors.values() if spec is not None)

    plain = [
        case
        for case in op_cases.cases(name)
        if elements(case)
        and all(spec is None or spec.fill is not Fill.SPECIAL for spec in case.tensors.values())
        and not _missing_dtypes(kit, case)
    ]
    if not plain:
        kit.lacks("dtype", name, f"every case of {name} needs a dtype that the device does not list")
    ordered = sorted(plain, key=elements)
    return list({case.name: case for case in (ordered[0], ordered[len(ordered) // 2])}.values())


def _bound_arguments(
    kit: Kit, registered: Any, name: str, case: OpCase, differentiable: bool
) -> tuple[list[Any], dict[str, Any]]:
    from ds_core.testing import op_cases

    call = op_cases.build(name, case).to(kit.device)
    if differentiable:
        for tensor in call.tensors.values():
            if tensor is not None and tensor.dtype.is_floating_point:
                tensor.requires_grad_()
    given, arguments, named = {**call.tensors, **call.scalars}, list[Any](), dict[str, Any]()
    for place, argument in enumerate(registered._schema.arguments):
        if argument.name in given and place == len(arguments) and not argument.kwarg_only:
            arguments.append(given[argument.name])
        elif argument.name in given:
            named[argument.name] = given[argument.name]
    return arguments, named


def _compare_gradients(kit: Kit, registered: Any, name: str, case: OpCase) -> None:
    """Gradients through the op on the device and on the host."""
    from ds_core.testing import op_cases

    found = []
    for device in (kit.device, torch.device("cpu")):
        call = op_cases.build(name, case)
        leaves = _leaves(call.tensors, device)
        outputs = op_cases.as_tuple(registered(**leaves, **call.scalars))
        losses = [(o.float() * 0.5).square().sum() for o in outputs if o.requires_grad]
        torch.stack(losses).sum().backward()
        found.append({key: None if leaf is None else leaf.grad for key, leaf in leaves.items()})
    for key, wanted in found[1].items():
        ours = found[0][key]
        kit.expect((ours is None) == (wanted is None), f"a gradient of {key} as on the host", ours)
        if ours is not None and wanted is not None:
            bound = 4 * _LENIENT[str(wanted.dtype).removeprefix("torch.")]
            kit.expect_close(ours, wanted, f"{name}, case {case.name}: gradient of {key}", bound)


def _leaves(tensors: dict[str, torch.Tensor | None], device: torch.device) -> dict[str, torch.Tensor | None]:
    leaves = {key: None if t is None else t.detach().clone().to(device) for key, t in tensors.items()}
    for leaf in leaves.values():
        if leaf is not None and leaf.dtype.is_floating_point:
            leaf.requires_grad_()
    return leaves


CHECKS.each(
    "torch.library.opcheck passes: the schema tells what is changed, and fake tensors have the shapes of real ones; "
    "gradients of ops that have a derivative are those of the host",
    list(OPS),
    _torch_checks,
    lambda name: Needs(capabilities=(Capability.STORAGE_ALIASING,)),  # opcheck compares storages
)


@WHEEL.case("each ds_ops entry names an op of the table, and what it names can be imported", Needs(device=False))
def entries_load(kit: Kit) -> None:
    from ds_core.plugins import load_ref, manager

    unusable = kit.bench.unusable()
    if unusable is not None:
        kit.lacks(unusable.kind, unusable.missing, unusable.text)
    mine = [p for p in manager().collect("ds_ops") if p.record.id == kit.record.id]
    if not mine:
        kit.lacks("own", "ops of its own", "the wheel brings no ops: core's references run")
    unknown = sorted({p.item.op for p in mine} - set(OPS))
    kit.expect(not unknown, "ops of the table", f"{', '.join(unknown)}")
    for provided in mine:
        for ref in (provided.item.load, provided.item.supports):
            kit.expect(ref is None or callable(load_ref(ref, provided.record)), f"{ref} to be callable", "it is not")
    kit.figures["native_ops"] = len({p.item.op for p in mine if p.item.device_type == kit.accelerator.device_type})


@WHEEL.case("no two wheels bring an op for the device with equal priority")
def entries_do_not_conflict(kit: Kit) -> None:
    from ds_core.ops.registry import resolve

    providers = {name: resolve(name, kit.accelerator.device_type).provider for name in OPS}
    native = sum(provider != "reference" for provider in providers.values())
    kit.figures |= {"native": native, "reference": len(OPS) - native}
    kit.note(f"{native} ops native, {len(OPS) - native} by the reference")
