"""The launcher for this machine (and for one machine of several, started by hand on each): a torchrun call."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import ClassVar

from ds_core.errors import LaunchError
from ds_core.launch import binding
from ds_core.launch.base import Launcher
from ds_core.launch.bind import THREADS_VARIABLE
from ds_core.launch.binding import plan_shares
from ds_core.launch.spec import LaunchSpec
from ds_core.launch.topology import read_topology

__all__ = ["LocalLauncher", "available_cores", "threads_of_each"]


class LocalLauncher(Launcher):
    """torchrun's agent in a process of its own, meeting on loopback when there is one machine."""

    name: ClassVar[str] = "local"

    def check(self, spec: LaunchSpec) -> None:
        """Raise `LaunchError` when the job cannot be served here, for want of cores too."""
        super().check(spec)
        if spec.binds:
            if sys.platform != "linux":
                raise LaunchError(f"--bind-cores-to-rank needs Linux, this is {sys.platform}; leave it out")
            plan_shares(read_topology(), self.nproc(spec), spec.bind_core_list)

    def command(self, spec: LaunchSpec) -> list[str]:
        """``python -m ds_core.launch.agent`` with torchrun's own flags, then the script under `ds_core.launch.rank`."""
        nproc = self.nproc(spec)
        words = [sys.executable, "-m", "ds_core.launch.agent", f"--nproc-per-node={nproc}", f"--nnodes={spec.nnodes}"]
        if spec.nnodes == 1:
            words += ["--rdzv-backend=ds-loopback", f"--rdzv-endpoint=127.0.0.1:{spec.master_port}"]
        else:
            words += [
                "--rdzv-backend=static",
                f"--node-rank={spec.node_rank}",
                f"--master-addr={spec.master_addr}",
                f"--master-port={spec.master_port}",
            ]
        # The agents of several machines find each other in the store by the id, so that it has to be the same.
        run_id = f"ds-{os.getpid()}-{time.time_ns()}" if spec.nnodes == 1 else f"ds-{spec.master_port}"
        words += [f"--rdzv-id={run_id}", f"--max-restarts={spec.max_restarts}"]
        if spec.log_dir is not None:
            words += [f"--log-dir={spec.log_dir}", "--tee=3"]
        if spec.no_python:
            return [*words, "--no-python", "--", spec.script, *spec.arguments]
        words += ["--module", "--", "ds_core.launch.rank"]
        if spec.binds:
            words.append("--bind-cores" if spec.bind_core_list is None else f"--bind-cores={spec.bind_core_list}")
        if spec.local_rank_argument:
            words.append("--local-rank")
        if spec.module:
            words.append("--module")
        return [*words, spec.script, *spec.arguments]

    def environment(self, spec: LaunchSpec, environ: Mapping[str, str]) -> dict[str, str]:
        """The caller's variables, the job's, and a share of the cores for each rank's threads when none was chosen."""
        made = {**environ, **spec.env}
        # A rank that runs inside another job's rank must not take its place for its own.
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID"):
            made.pop(name, None)
        made.pop(THREADS_VARIABLE, None)
        if "OMP_NUM_THREADS" not in made:
            nproc = self.nproc(spec)
            made["OMP_NUM_THREADS"] = str(threads_of_each(nproc))
            if spec.binds:
                made[THREADS_VARIABLE] = "share"  # each rank says itself how many it starts
            elif nproc > 1:
                sys.stderr.write(
                    f"ds run: OMP_NUM_THREADS={made['OMP_NUM_THREADS']} ({available_cores()} cores for {nproc} ranks); "
                    "set it yourself to choose\n"
                )
        if spec.nnodes == 1 and sys.platform.startswith("linux"):
            made.setdefault("GLOO_SOCKET_IFNAME", "lo")
        made["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(spec.grace_s)
        made.setdefault("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "[rank ${rank}] ")
        made.setdefault("TMPDIR", tempfile.gettempdir())
        return made


def available_cores() -> int:
    """Cores this process may use; a core with several hardware threads counts once."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return read_topology().core_count


def threads_of_each(ranks: int) -> int:
    """Threads for each of `ranks` that are not bound."""
    if sys.platform != "linux":
        return max(1, available_cores() // ranks)
    return binding.threads_of_each(read_topology(), ranks)
