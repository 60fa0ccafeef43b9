"""The conformance cases of every op, and what runs them: a vendor's acceptance test for native kernels.

from ds_core.testing import op_cases

@pytest.mark.parametrize(("op", "case"), op_cases.every())
def test_kernel(op, case):
    op_cases.check(op, case, "cuda")
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec
from ds_core.ops.registry import resolve
from ds_core.ops.table import OPS, op

__all__ = ["Call", "as_tuple", "build", "cases", "check", "check_kernel", "compare", "every"]


_FAR = torch.iinfo(torch.int64).max


class Call(NamedTuple):
    """Arguments of one call, in the order of the schema."""

    tensors: dict[str, torch.Tensor | None]
    scalars: dict[str, Any]

    def clone(self) -> Call:
        """The same arguments over other memory, strides kept."""
        return Call({k: None if t is None else _copy(t) for k, t in self.tensors.items()}, dict(self.scalars))

    def to(self, device: torch.device | str) -> Call:
        """The same arguments on a device, strides and offsets kept."""
        return Call({k: None if t is None else _moved(t, device) for k, t in self.tensors.items()}, dict(self.scalars))


def cases(name: str) -> tuple[OpCase, ...]:
    """The cases of one op."""
    return op(name).definition().cases


def every() -> list[tuple[str, OpCase]]:
    """(op, case) for every op of the table."""
    return [(name, case) for name in OPS for case in cases(name)]


def build(name: str, case: OpCase) -> Call:
    """The arguments of a case, on the host; the same values at every call and on every machine."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name}/{case.name}".encode()))
    tensors = {key: None if spec is None else _tensor(spec, generator) for key, spec in case.tensors.items()}
    scalars = dict(case.scalars)
    if "dtype" in scalars:
        scalars["dtype"] = getattr(torch, str(scalars["dtype"]))
    return Call(tensors, scalars)


def check(name: str, case: OpCase, device_type: str) -> None:
    """Runs a case through the registry on `device_type` and compares with the reference on the host.

    Raises:
        AssertionError: an output, or an argument that the op changes, is outside of the case's bound.
    """
    check_kernel(name, case, resolve(name, device_type), device_type)


def check_kernel(name: str, case: OpCase, kernel: Callable[..., Any], device_type: str) -> None:
    """As `check`, for a callable with the signature of the op, whoever brings it."""
    definition = op(name).definition()
    expected_call = build(name, case)
    call = expected_call.clone().to(device_type)
    definition.check(**call.tensors, **call.scalars)
    expected = definition.reference(**expected_call.tensors, **expected_call.scalars)
    found = kernel(**call.tensors, **call.scalars)
    where = f"{name}, case {case.name}, on {device_type}"
    for index, (got, want) in enumerate(zip(as_tuple(found), as_tuple(expected), strict=True)):
        compare(got.cpu(), want, case.exactness, f"{where}: output {index}")
    for key, want_argument in expected_call.tensors.items():
        got_argument = call.tensors[key]
        if want_argument is not None and got_argument is not None:
            compare(got_argument.cpu(), want_argument, case.exactness, f"{where}: argument {key}")


def compare(got: torch.Tensor, want: torch.Tensor, exactness: Exactness, where: str) -> None:
    """Compares shape, dtype and values.

    Raises:
        AssertionError: they differ by more than `exactness` allows; says by how much and where first.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        raise AssertionError(
            f"{where}: got {got.dtype} {tuple(got.shape)}, the reference gives {want.dtype} {tuple(want.shape)}"
        )
    if got.numel() == 0:
        return
    got, want = got.reshape(-1), want.reshape(-1)
    off = _ulps(got, want)
    bad = off > exactness.ulps
    if exactness.relative > 0 and want.dtype.is_floating_point:
        finite = want[want.isfinite()].float()
        largest = finite.abs().max().item() if finite.numel() else 0.0
        near = (got.double() - want.double()).abs() <= exactness.relative * largest
        bad &= ~near
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise AssertionError(
            f"{where}: {int(bad.sum())} of {got.numel()} values are off, the first at {first}: "
            f"got {got[first].item()!r}, the reference gives {want[first].item()!r}, {int(off[first])} ulps away; "
            f"allowed {exactness}"
        )


def _ulps(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Distance in units in the last place, as int64; 0 between NaNs, and between zeros of either sign."""
    if not got.dtype.is_floating_point:
        return (got.to(torch.int64) - want.to(torch.int64)).abs()
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    lowest = torch.iinfo(width).min

    def magnitude(x: torch.Tensor) -> torch.Tensor:
        bits = x.contiguous().view(width).to(torch.int64)
        return torch.where(bits < 0, bits - lowest, bits)

    # Same sign: the difference of the magnitudes. Across zero: their sum, which for float64 may not fit.
    low, high = magnitude(got), magnitude(want)
    across = torch.where(low > _FAR - high, _FAR, low + high)
    distance = torch.where(got.signbit() == want.signbit(), (low - high).abs(), across)
    distance = torch.where(got.isnan() != want.isnan(), _FAR, distance)
    return torch.where(got.isnan() & want.isnan(), 0, distance)


def _tensor(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    values = _fill(spec, generator).to(getattr(torch, spec.dtype))
    if spec.layout is Layout.TRANSPOSED:
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if spec.layout is Layout.STRIDED:
        wide = torch.zeros((*spec.shape[:-1], spec.shape[-1] * 2), dtype=values.dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    if spec.layout is Layout.OFFSET:
        storage = torch.zeros(values.numel() + 1, dtype=values.dtype)
        storage[1:] = values.reshape(-1)
        return storage[1:].view(spec.shape)
    return values


def _fill(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    if spec.values is not None:
        return torch.tensor(spec.values, dtype=torch.float64).reshape(spec.shape)
    if spec.fill is Fill.INTEGERS:
        return torch.randint(-127, 128, spec.shape, generator=generator)
    if spec.fill in (Fill.INDICES, Fill.RISING, Fill.HOLES, Fill.TARGETS):
        return _indices(spec, generator)
    if spec.fill is Fill.CODES:
        signs = torch.randint(0, 2, spec.shape, generator=generator) << 7
        return signs | torch.randint(0, int(spec.scale), spec.shape, generator=generator)
    if spec.fill is Fill.BYTES:
        return torch.randint(0, 256, spec.shape, generator=generator)
    if spec.fill is Fill.ZEROS:
        return torch.zeros(spec.shape)
    if not spec.shape:  # a scalar is a parameter of the call: exactly the scale
        return torch.tensor(spec.scale)
    normal = torch.randn(spec.shape, generator=generator)
    if spec.fill is Fill.SQUARES:
        return (normal * spec.scale).square()
    if spec.fill is Fill.WIDE:
        return normal * spec.scale * 10.0 ** (torch.rand(spec.shape, generator=generator) * 12 - 6)
    values = normal * spec.scale
    if spec.fill is Fill.SPECIAL:
        flat = values.view(-1)
        for offset, special in enumerate((float("inf"), float("-inf"), float("nan"), 0.0, -0.0)):
            flat[offset * 7 :: 501] = special
    return values


def _indices(spec: TensorSpec, generator: torch.Generator) -> torch.Tensor:
    bound = int(spec.scale)
    if spec.fill is Fill.RISING:
        drawn = torch.rand((*spec.shape[:-1], bound), generator=generator).argsort(-1)
        return drawn[..., : spec.shape[-1]].sort(-1).values
    values = torch.randint(0, bound, spec.shape, generator=generator)
    if spec.fill is Fill.HOLES:
        values.view(-1)[3::7] = -1
    if spec.fill is Fill.TARGETS:
        values.view(-1)[2::5] = -100
    return values


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides and the same offset into its storage."""
    storage = tensor.untyped_storage().clone()
    return torch.empty(0, dtype=tensor.dtype).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _moved(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on a device; one that is no plain run of memory as a view of its whole storage there."""
    if tensor.device == torch.device(device) or (tensor.is_contiguous() and not tensor.storage_offset()):
        return tensor.to(device)
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def as_tuple(value: Any) -> tuple[torch.Tensor, ...]:
    """What an op returned, as a tuple of tensors."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)
