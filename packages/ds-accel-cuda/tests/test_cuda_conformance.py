"""Every kernel, emulated: against the references, in several orders of threads and blocks, on several host threads."""

from __future__ import annotations

import pytest
import torch

from ds_accel_cuda.libraries import emulated, emulated_path
from ds_core.ops.calls import HostLauncher, KernelOps
from ds_core.ops.case import Exactness, OpCase
from ds_core.testing import op_cases
from ds_core.testing.emulation import Emulation, check_in_every_order

LIBRARY = emulated()
EMULATION = Emulation(emulated_path())
NAMES = sorted(LIBRARY.kernels)


@pytest.mark.parametrize("name", NAMES)
def test_every_case_agrees_with_the_reference_in_every_order_of_threads(name: str) -> None:
    kernel = getattr(KernelOps(LIBRARY, HostLauncher()), name)
    for case in op_cases.cases(name):
        check_in_every_order(name, case, kernel, EMULATION)


def elements(case: OpCase) -> int:
    return sum(torch.Size(spec.shape).numel() for spec in case.tensors.values() if spec is not None)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_on_several_host_threads_give_the_same_bits(name: str) -> None:
    case = max(op_cases.cases(name), key=elements)
    results = []
    for threads in (1, 3):
        call = op_cases.build(name, case)
        found = getattr(KernelOps(LIBRARY, HostLauncher(threads)), name)(**call.tensors, **call.scalars)
        results.append((*op_cases.as_tuple(found), *(t for t in call.tensors.values() if t is not None)))
    for one, three in zip(*results, strict=True):
        op_cases.compare(three, one, Exactness(ulps=0), f"{name}, {case.name}: 3 host threads and 1")


def test_an_elementwise_optimizer_is_one_launch() -> None:
    ops = KernelOps(LIBRARY, HostLauncher())
    p, g, m, v = (torch.ones(100_003) for _ in range(4))
    before = EMULATION.launches()
    ops.adam_(p, g, m, v, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0, step=1)
    assert EMULATION.launches() - before == 1
