"""Machines of one job learn that another failed, and end their ranks: torchrun's agents do not tell each other.

The word goes through the store at the first machine, where the agents meet anyway. When the store itself is gone, so is
that machine, or its ranks have failed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

from ds_core.launch.listening import children

__all__ = ["PeerWatch"]

_KEY = "ds-launch-failed"
_EVERY_S = 1.0
_SETTLE_S = 3.0
"""After the last agent's farewell the store goes, too; ranks that still run then are not about to end by themselves."""


class PeerWatch:
    """Watches the other machines of a job from `start` to `end`; SIGTERM for this process when one failed.

    Args:
        address: of the first machine.
        port: of the store there.
        node_rank: this machine.
    """

    def __init__(self, address: str, port: int, node_rank: int) -> None:
        self._address: str = address
        self._port: int = port
        self._node_rank: int = node_rank
        self._ended: threading.Event = threading.Event()
        self.has_stopped_us: bool = False

    def start(self) -> None:
        """Watches in a thread of its own."""
        threading.Thread(target=self._watch, daemon=True, name="ds-peer-watch").start()

    def end(self, *, failed: bool) -> None:
        """No longer watches; when the ranks here `failed`, tells the others."""
        self._ended.set()
        if failed and not self.has_stopped_us:
            try:
                self._store(3).set(_KEY, str(self._node_rank))
            except RuntimeError:  # the store was this machine's own, or its machine is gone: the others see that
                return

    def _store(self, timeout_s: int) -> TCPStore:
        timeout = timedelta(seconds=timeout_s)
        return TCPStore(self._address, self._port, is_master=False, wait_for_workers=False, timeout=timeout)

    def _watch(self) -> None:
        try:
            store = self._store(600)
            while not self._ended.wait(_EVERY_S):
                if store.check([_KEY]):
                    break
        except RuntimeError:
            pass
        if self._ended.wait(_SETTLE_S) or not children():
            return
        sys.stderr.write("ds run: another machine's ranks failed, or it is gone: ending the ranks here\n")
        self.has_stopped_us = True
        os.kill(os.getpid(), signal.SIGTERM)
