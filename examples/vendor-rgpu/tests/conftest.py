"""A server on loopback for all tests; every process has the device from the start, see `device.autoload`."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

os.environ["DS_ACCELERATOR"] = "rgpu"
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("OMP_NUM_THREADS", "1")
with socket.create_server(("127.0.0.1", 0)) as _probe:
    PORT = int(_probe.getsockname()[1])
os.environ["RGPU_OPSERVER"] = f"127.0.0.1:{PORT}"

from ds_accel_rgpu.device import load  # below the lines that torch reads when it is imported

load()


@pytest.fixture(scope="session", autouse=True)
def server() -> Iterator[None]:
    """The process that holds the tensors; it ends with the tests."""
    command = [sys.executable, "-m", "rgpu.server", "--device", "cpu", "--port", str(PORT)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(process)
        yield
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"rgpu.server ended with code {process.returncode} before it answered")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", PORT), timeout=1.0).close()
            return
        time.sleep(0.1)
    raise RuntimeError("rgpu.server did not answer for two minutes")
