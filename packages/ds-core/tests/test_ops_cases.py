from __future__ import annotations

import pytest
import torch

from ds_core.ops import conformance
from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec
from ds_core.ops.registry import Resolved
from ds_core.testing import op_cases


def flat(**spec: object) -> OpCase:
    return OpCase("case", {"x": TensorSpec((6, 10), **spec)})  # type: ignore[arg-type]


def test_a_case_builds_the_same_values_every_time() -> None:
    first, second = (op_cases.build("op", flat(fill=Fill.WIDE)).tensors["x"] for _ in range(2))
    assert first is not None and second is not None
    assert torch.equal(first, second)
    other = op_cases.build("another", flat(fill=Fill.WIDE)).tensors["x"]
    assert other is not None and not torch.equal(first, other)


@pytest.mark.parametrize("layout", list(Layout))
def test_layouts_have_equal_values_and_their_own_strides(layout: Layout) -> None:
    made = op_cases.build("op", flat(layout=layout)).tensors["x"]
    plain = op_cases.build("op", flat()).tensors["x"]
    assert made is not None and plain is not None
    assert torch.equal(made, plain)
    assert made.is_contiguous() == (layout in (Layout.CONTIGUOUS, Layout.OFFSET))
    assert made.storage_offset() == (1 if layout is Layout.OFFSET else 0)


@pytest.mark.parametrize("layout", list(Layout))
def test_a_cloned_call_keeps_strides_and_shares_no_memory(layout: Layout) -> None:
    call = op_cases.build("op", flat(layout=layout))
    before, after = call.tensors["x"], call.clone().tensors["x"]
    assert before is not None and after is not None
    assert (before.stride(), before.storage_offset()) == (after.stride(), after.storage_offset())
    after.zero_()
    assert before.abs().sum() > 0


def test_special_values_are_there() -> None:
    case = OpCase("case", {"x": TensorSpec((4000,), fill=Fill.SPECIAL)})
    x = op_cases.build("op", case).tensors["x"]
    assert x is not None
    assert x.isnan().any() and x.isposinf().any() and x.isneginf().any() and (x == 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_compare_counts_units_in_the_last_place(dtype: torch.dtype) -> None:
    one = torch.ones(3, dtype=dtype)
    above = torch.nextafter(one, torch.full_like(one, 2))
    op_cases.compare(above, one, Exactness(ulps=1), "x")
    with pytest.raises(AssertionError, match=r"3 of 3 values are off, the first at 0.* 1 ulps away"):
        op_cases.compare(above, one, Exactness(ulps=0), "x")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_compare_counts_across_zero(dtype: torch.dtype) -> None:
    smallest = torch.nextafter(torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype))
    op_cases.compare(smallest, -smallest, Exactness(ulps=2), "x")
    with pytest.raises(AssertionError, match="2 ulps away"):
        op_cases.compare(smallest, -smallest, Exactness(ulps=1), "x")
    with pytest.raises(AssertionError, match="1 of 1"):
        op_cases.compare(torch.full((1,), 2.0, dtype=dtype), torch.full((1,), -2.0, dtype=dtype), Exactness(99), "x")


def test_compare_takes_zeros_of_either_sign_and_nans_as_equal() -> None:
    got = torch.tensor([0.0, float("nan"), float("inf")])
    want = torch.tensor([-0.0, float("nan"), float("inf")])
    op_cases.compare(got, want, Exactness(), "x")
    with pytest.raises(AssertionError, match="1 of 3"):
        op_cases.compare(torch.tensor([0.0, 1.0, float("inf")]), want, Exactness(ulps=10**6), "x")


def test_compare_refuses_another_dtype_or_shape() -> None:
    with pytest.raises(AssertionError, match=r"bfloat16 \(3,\), the reference gives torch.float32 \(3,\)"):
        op_cases.compare(torch.ones(3, dtype=torch.bfloat16), torch.ones(3), Exactness(), "x")
    with pytest.raises(AssertionError, match=r"\(4,\), the reference gives torch.float32 \(3,\)"):
        op_cases.compare(torch.ones(4), torch.ones(3), Exactness(), "x")


def test_a_relative_bound_is_relative_to_the_largest_value() -> None:
    want = torch.tensor([1000.0, 0.0])
    op_cases.compare(torch.tensor([1000.0, 0.5]), want, Exactness(relative=1e-3), "x")
    with pytest.raises(AssertionError, match="the first at 1"):
        op_cases.compare(torch.tensor([1000.0, 1.5]), want, Exactness(relative=1e-3), "x")


def test_check_finds_a_kernel_that_is_wrong_in_one_element(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(**arguments: object) -> torch.Tensor:
        result: torch.Tensor = right.reference(**arguments)
        result.view(-1)[-1] += 1
        return result

    right = conformance.op("dequantize").definition()
    wrong = Resolved("dequantize", "cpu", off, None, right.reference, "a wheel", set())
    monkeypatch.setattr(conformance, "resolve", lambda name, device_type: wrong)
    case = next(case for case in right.cases if case.name == "int8_symmetric_even_float32")
    with pytest.raises(
        AssertionError, match="dequantize, case int8_symmetric_even_float32, on cpu: output 0: 1 of 2048"
    ):
        op_cases.check("dequantize", case, "cpu")
