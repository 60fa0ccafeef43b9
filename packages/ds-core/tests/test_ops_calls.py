"""A kernel library in plain C, called through core alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from ds_core.errors import OpError
from ds_core.ops import native
from ds_core.ops.calls import HostLauncher, KernelOps, StreamLauncher

COMPILER = shutil.which("cc") or shutil.which("gcc")
CPU = torch.device("cpu")

SOURCE = r"""
#include <stdio.h>
#include "ds_kernel.h"
static uint64_t needs(const void* arguments) {
  return 8 * (uint64_t)((const ds_sum_of_squares_args*)arguments)->numel;
}
static int32_t refuse(const ds_exec* exec, int32_t status, const char* why) {
  if (exec->struct_size >= sizeof(ds_exec) && exec->message) snprintf(exec->message, exec->message_bytes, "%s", why);
  return status;
}
static int32_t sum_of_squares(const void* arguments, const ds_exec* exec) {
  const ds_sum_of_squares_args* a = (const ds_sum_of_squares_args*)arguments;
  if (a->dtype != DS_F32) return DS_UNSUPPORTED_DTYPE;
  if (a->numel == 3) return refuse(exec, DS_DEVICE_ERROR, "three is too many");
  if (exec->workspace_bytes != needs(arguments) || (uintptr_t)exec->workspace % 64) return DS_WORKSPACE_TOO_SMALL;
  double* squares = (double*)exec->workspace;
  for (int64_t i = 0; i < a->numel; ++i) squares[i] = (double)((const float*)a->x)[i] * ((const float*)a->x)[i];
  double total = (double)(intptr_t)exec->stream * 1000 + exec->threads * 100;
  for (int64_t i = 0; i < a->numel; ++i) total += squares[i];
  *(double*)a->out = total;
  return DS_OK;
}
static int32_t gather_rows(const void* arguments, const ds_exec* exec) { return DS_INDEX_OUT_OF_RANGE; }
static const ds_kernel_entry entries[] = {
    {"sum_of_squares", 1, 0, sum_of_squares, needs}, {"gather_rows", 1, 0, gather_rows, NULL}};
static const ds_kernel_library library = {DS_KERNEL_MAGIC, DS_KERNEL_ABI_MAJOR, DS_KERNEL_ABI_MINOR,
    sizeof(ds_kernel_library), sizeof(ds_kernel_entry), 2, 0, "plain C", "test", entries};
DS_KERNEL_EXPORT const ds_kernel_library* ds_kernel_descriptor(void) { return &library; }
"""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler to build a library with")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> native.KernelLibrary:
    assert COMPILER is not None
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plain.c").write_text(SOURCE)
    command = [COMPILER, "-shared", "-fPIC", f"-I{native.include_dir()}", "plain.c", "-o", "libplain.so"]
    subprocess.run(command, check=True, cwd=folder)
    return native.load(folder / "libplain.so")


def test_an_op_runs_with_the_workspace_it_asks_for(library: native.KernelLibrary) -> None:
    assert KernelOps(library, HostLauncher()).sum_of_squares(torch.tensor([1.0, 2.0])).item() == 105.0


def test_no_workspace_for_a_call_that_needs_none(library: native.KernelLibrary) -> None:
    assert KernelOps(library, HostLauncher(threads=2)).sum_of_squares(torch.zeros(0)).item() == 200.0


def test_the_stream_in_use_is_passed_and_the_device_made_current(library: native.KernelLibrary) -> None:
    current = []

    @contextmanager
    def guard(device: torch.device) -> Iterator[None]:
        current.append(str(device))
        yield
        current.append("left")

    def stream(device: torch.device) -> int:
        assert current == ["cpu"]
        return 7

    ops = KernelOps(library, StreamLauncher(stream, guard))
    assert ops.sum_of_squares(torch.tensor([1.0])).item() == 7101.0
    assert current == ["cpu", "left"]


def test_a_refusal_says_what_the_kernel_says(library: native.KernelLibrary) -> None:
    ops = KernelOps(library, HostLauncher())
    with pytest.raises(RuntimeError, match=r"sum_of_squares .*status 4.*device runtime failed: three is too many"):
        ops.sum_of_squares(torch.ones(3))
    with pytest.raises(RuntimeError, match=r"status 2.*dtypes are not served$"):
        ops.sum_of_squares(torch.ones(2, dtype=torch.bfloat16))


def test_an_index_of_no_row_is_named(library: native.KernelLibrary) -> None:
    with pytest.raises(OpError, match=r"index\[1\] is 9; allowed: 0 to 1"):
        KernelOps(library, HostLauncher()).gather_rows(torch.ones(2, 2), torch.tensor([0, 9]))


def test_a_row_that_is_not_there_is_an_error_when_it_is_called(library: native.KernelLibrary) -> None:
    ops = KernelOps(library, HostLauncher())
    with pytest.raises(OpError, match=r"libplain.so \(plain C\) has no row 'softmax_forward'.*it has sum_of_squares"):
        ops.softmax_forward(torch.ones(2, 2), None, None, 1.0, False)
