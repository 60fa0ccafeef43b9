"""Signals reach what the launcher starts, whatever the launcher itself was started with."""

from __future__ import annotations

import signal
import sys

from ds_core.launch import LaunchSpec, LocalLauncher

IS_DEFAULT = "import signal, sys; sys.exit(0 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 3)"


class Asking(LocalLauncher):
    """Starts a program that tells how it was started."""

    def command(self, spec: LaunchSpec) -> list[str]:
        return [sys.executable, "-c", IS_DEFAULT]


def test_a_launcher_started_in_the_background_does_not_pass_ignored_signals_on():
    # A shell's `&` starts commands with SIGINT ignored, and what is ignored stays ignored over exec.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Asking().run(LaunchSpec(__file__, nproc=1))  # raises where the program's exit code is not 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
