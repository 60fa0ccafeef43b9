"""Moves the bytes of one Adam step each time it is told: bandwidth.py LIBRARY NUMEL. No torch in the process."""

from __future__ import annotations

import ctypes
import sys
import time

from protocol import Channel

channel = Channel()
library = ctypes.CDLL(sys.argv[1])
if library.prepare(ctypes.c_int64(int(float(sys.argv[2])))):
    sys.exit("MemoryError: the arrays do not fit")
library.move()
channel.say(implementation="bandwidth.c")
for _ in channel.orders():
    began = time.perf_counter()
    library.move()
    channel.say(s=time.perf_counter() - began)
