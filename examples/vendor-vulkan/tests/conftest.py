"""Every process of these tests has the device from the start, see `ds_accel_vulkan.device.autoload`."""

from __future__ import annotations

import os

os.environ["DS_ACCELERATOR"] = "vulkan"
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from ds_accel_vulkan.device import load  # below the lines that torch reads when it is imported

load()
