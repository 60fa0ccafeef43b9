"""Signals reach what the launcher starts, whatever the launcher itself was started with."""

from __future__ import annotations

import os
import signal
import sys

from ds_core.launch.base import _supervise

IS_DEFAULT = "import signal, sys; sys.exit(0 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 3)"


def test_a_launcher_started_in_the_background_does_not_pass_ignored_signals_on():
    # A shell's `&` starts commands with SIGINT ignored, and what is ignored stays ignored over exec.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code, received = _supervise([sys.executable, "-c", IS_DEFAULT], os.environ)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, received) == (0, None)
