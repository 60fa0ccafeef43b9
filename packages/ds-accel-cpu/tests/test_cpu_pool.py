from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ds_accel_cpu import _binding
from ds_accel_cpu.serving import OPS
from ds_accel_cpu.threads import borrow_from_torch, loaded_libgomp

CAN_BORROW = borrow_from_torch()
HOME = Path(torch.__file__).parent


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """Leaves torch's thread count as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["own", "borrowed"])
def threads(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test on the own pool and on torch's threads."""
    if request.param == "borrowed" and not CAN_BORROW:
        pytest.skip("torch does not run on libgomp here")
    if request.param == "own":
        _binding.borrow_threads(0)
    yield request.param
    borrow_from_torch()


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_own_pool_starts_one_thread_less_than_asked_and_only_when_needed() -> None:
    run(
        """
        import torch
        from ds_accel_cpu import _binding
        from ds_accel_cpu.serving import OPS
        _binding.borrow_threads(0)
        assert not _binding.is_borrowing()
        x = torch.ones(1_000_000)
        torch.set_num_threads(1)
        OPS.sum_of_squares(x)
        assert _binding.worker_count() == 0
        torch.set_num_threads(3)
        for _ in range(5):
            OPS.sum_of_squares(x)
        assert _binding.worker_count() == 2
        """
    )


@pytest.mark.skipif(not CAN_BORROW, reason="torch does not run on libgomp here")
def test_borrowed_threads_are_those_torch_has() -> None:
    run(
        """
        import os, torch
        from ds_accel_cpu import _binding
        from ds_accel_cpu.serving import OPS
        assert _binding.is_borrowing()
        torch.set_num_threads(4)
        x = torch.ones(1_000_000)
        x.add_(0)
        before = len(os.listdir("/proc/self/task"))
        assert OPS.sum_of_squares(x).item() == 1e6
        assert len(os.listdir("/proc/self/task")) == before and _binding.worker_count() == 0
        """
    )


def test_importing_starts_no_thread() -> None:
    run(
        """
        import os
        before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
        from ds_accel_cpu import _binding, plugin
        list(plugin.ds_ops())
        after = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
        assert before == after and _binding.worker_count() == 0
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.parametrize("own", [True, False], ids=["own", "borrowed"])
def test_a_forked_child_has_a_pool_of_its_own_and_so_has_its_child(own: bool) -> None:
    run(
        f"""
        import os, warnings
        import torch
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of what is tested here
        from ds_accel_cpu import _binding
        from ds_accel_cpu.serving import OPS
        if {own}:
            _binding.borrow_threads(0)
        torch.set_num_threads(2)
        x = torch.ones(1_000_000)
        assert OPS.sum_of_squares(x).item() == 1e6

        def in_child(depth):
            child = os.fork()
            if child:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                return
            ok = _binding.worker_count() == 0 and not _binding.is_borrowing()
            ok = ok and all(OPS.sum_of_squares(x).item() == 1e6 for _ in range(20)) and _binding.worker_count() == 1
            if depth:
                in_child(depth - 1)
            os._exit(0 if ok else 1)

        borrowing = _binding.is_borrowing()
        in_child(1)
        assert _binding.is_borrowing() == borrowing
        assert OPS.sum_of_squares(x).item() == 1e6
        """
    )


def test_calls_from_several_python_threads_at_once(threads: str) -> None:
    torch.set_num_threads(2)
    data = [torch.full((400_000,), float(k)) for k in range(4)]
    wrong: list[int] = []

    def work(k: int) -> None:
        torch.set_num_threads(2)
        for _ in range(50):
            if OPS.sum_of_squares(data[k]).item() != 400_000.0 * k * k:
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not wrong


def test_many_small_and_large_calls_with_changing_thread_counts(threads: str) -> None:
    for count in (1, 4, 2, 7, 1, 3):
        torch.set_num_threads(count)
        for numel in (0, 1, 65_536, 65_537, 300_000):
            assert OPS.sum_of_squares(torch.ones(numel)).item() == numel


def test_workers_flush_denormals_if_and_only_if_the_caller_does(threads: str) -> None:
    numel = 2_000_000
    hyper = {"lr": 1e-3, "beta1": 0.5, "beta2": 0.5, "eps": 0.1, "weight_decay": 0.0, "step": 1}

    grad = torch.full((numel,), 1e-38)
    p, m, v = (torch.zeros(numel) for _ in range(3))

    def moments(count: int) -> torch.Tensor:
        torch.set_num_threads(count)
        found = torch.zeros(0, dtype=torch.int32)
        for _ in range(30):  # often enough for workers to wake up in time and take part
            m.zero_()
            OPS.adam_(p, grad, m, v, **hyper)
            found = torch.cat([found, m.view(torch.int32)]).unique()
        return found

    kept = moments(4)
    assert kept.numel() == 1 and kept[0] != 0
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        flushed = moments(4)
    finally:
        torch.set_flush_denormal(False)
    assert flushed.tolist() == [0]
    assert torch.equal(moments(4), kept)


def maps(*paths: object) -> str:
    return (
        "".join(f"7f00-7f01 r-xp 00000000 08:01 1234 {path}\n" for path in paths) + "7f02-7f03 rw-p 00000000 00:00 0\n"
    )


def test_torchs_libgomp_is_found_among_others() -> None:
    own = HOME / "lib" / "libgomp.so.1"
    renamed = HOME.with_name("torch.libs") / "libgomp-a34b3233.so.1.0.0"
    assert loaded_libgomp(maps("/usr/lib/libgomp.so.1", own, own, "/x/libm.so.6")) == str(own)
    assert loaded_libgomp(maps(renamed, "/usr/lib/libgomp.so.1")) == str(renamed)
    assert loaded_libgomp(maps("/usr/lib/libgomp.so.1")) == "/usr/lib/libgomp.so.1"
    assert loaded_libgomp(maps("/usr/lib/libiomp5.so")) is None
    assert loaded_libgomp(maps("/a/libgomp.so.1", "/b/libgomp.so.1")) is None
