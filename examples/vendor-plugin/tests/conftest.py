"""Every process of these tests has the device from the start, see `ds_accel_openbox.device.autoload`."""

from __future__ import annotations

import os

os.environ["OPENBOX_AUTOLOAD"] = "1"
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from ds_accel_openbox.device import load  # below the lines that torch reads when it is imported

load()
