"""The recipes of the fuzzer (`nox -s sanitize` runs it under AddressSanitizer) cover the table and make valid calls."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ds_accel_cpu import plugin
from ds_accel_cpu.isa import load_level, usable_levels
from ds_accel_cpu.launching import cpu_ops

SERVED = [impl.op for impl in plugin.ds_ops()]
FUZZ = Path(__file__).resolve().parent.parent / "fuzz"


@pytest.fixture
def fuzzer(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(FUZZ))
    yield importlib.import_module("run")
    torch.set_num_threads(threads)


def test_every_op_has_a_recipe(fuzzer: ModuleType) -> None:
    assert set(fuzzer.RECIPES) == set(SERVED)


@pytest.mark.parametrize("name", SERVED)
def test_drawn_calls_are_valid_and_spoilt_indices_refused(name: str, fuzzer: ModuleType) -> None:
    kernel = getattr(cpu_ops(load_level(usable_levels()[0])), name)
    for number in range(12):
        fuzzer.call_once(name, number, kernel)


def test_a_kernel_that_takes_a_wrong_index_is_found(fuzzer: ModuleType) -> None:
    with pytest.raises(AssertionError, match="a wrong index was not refused"):
        for number in range(100):
            fuzzer.call_once("gather_rows", number, lambda x, index: x)
