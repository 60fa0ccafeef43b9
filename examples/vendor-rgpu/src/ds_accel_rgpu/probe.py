"""Is the server here? Without torch, and never an exception: "no" is an answer with a reason."""

from __future__ import annotations

import importlib.metadata
import os
import socket
from collections.abc import Mapping

from ds_core.hooks import Availability

__all__ = ["BACKEND", "SERVER", "TESTED", "missing", "probe"]

BACKEND = "rgpu"
TESTED = "0.1.1"
SERVER = "RGPU_OPSERVER"
TIMEOUT_S = 1.0


def probe(environ: Mapping[str, str] | None = None) -> Availability:
    """One device, where a server was named and answers. Its default address is not tried: nobody asked for that."""
    why = missing(os.environ if environ is None else environ)
    return Availability(not why, why, device_count=0 if why else 1)


def missing(environ: Mapping[str, str]) -> str:
    """What the device needs and this machine lacks, with the line that brings it; "" when nothing is."""
    try:
        installed = importlib.metadata.version(BACKEND)
    except importlib.metadata.PackageNotFoundError:
        return f"{BACKEND} is not installed; run: pip install --no-deps {BACKEND}=={TESTED}"
    if installed != TESTED:
        return f"{BACKEND} {installed} is installed, tested is {TESTED}; run: pip install --no-deps {BACKEND}=={TESTED}"
    host, colon, port = environ.get(SERVER, "").rpartition(":")
    if not colon or not port.isdigit():
        return f"{SERVER} must be HOST:PORT of an rgpu-opserver, got {environ.get(SERVER, '')!r}"
    try:
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S).close()
    except OSError as error:
        return f"no server answers at {SERVER}={host}:{port} ({error}); run: rgpu-opserver --device cpu --port {port}"
    return ""
