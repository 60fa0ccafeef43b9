"""torchrun with a rendezvous on loopback only, one message for ranks that fail, and time for ranks to save.

``python -m ds_core.launch.agent FLAGS -- SCRIPT ARGS...`` takes torchrun's flags; what follows ``--`` never meets its
parser, which would take a script's ``--nproc`` for an abbreviation of its own. torchrun's own rendezvous listens on
every interface, also when all ranks are on one machine. SIGTERM, SIGUSR1 and SIGUSR2 are passed on as
`ds_core.launch.passing` says.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from ds_core.errors import Preempted
from ds_core.launch.base import REPORT_VARIABLE
from ds_core.launch.orphan import end_with_parent
from ds_core.launch.outcome import RankFailure, first_failure, was_preempted, write_failures
from ds_core.launch.passing import Passing
from ds_core.launch.peers import PeerWatch

__all__ = ["LoopbackRendezvous", "main"]


class LoopbackRendezvous(RendezvousHandler):
    """The rendezvous of a job on one machine: nobody to wait for, and a store that only this machine reaches."""

    def __init__(self, run_id: str, port: int) -> None:
        self._run_id = run_id
        try:
            listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            sys.stderr.write(f"ds run: cannot listen on 127.0.0.1:{port} ({error}); choose another --master-port\n")
            raise SystemExit(2) from error
        self._port: int = listener.getsockname()[1]
        self._store = TCPStore(
            "127.0.0.1",
            self._port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
            timeout=timedelta(minutes=10),
        )

    @classmethod
    def create(cls, parameters: RendezvousParameters) -> RendezvousHandler:
        """What torchrun calls."""
        return cls(parameters.run_id, int(parameters.endpoint.rpartition(":")[2] or 0))

    def get_backend(self) -> str:
        """Its name among torchrun's."""
        return "ds-loopback"

    @property
    def use_agent_store(self) -> bool:
        """The ranks meet at the agent's store; none of them listens."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """This agent, the only one."""
        return RendezvousInfo(
            PrefixStore(self._run_id, self._store), 0, 1, RendezvousStoreInfo("127.0.0.1", self._port)
        )

    def is_closed(self) -> bool:
        """False."""
        return False

    def set_closed(self) -> None:
        """Nothing to close."""

    def num_nodes_waiting(self) -> int:
        """0."""
        return 0

    def get_run_id(self) -> str:
        """The job's id."""
        return self._run_id

    def shutdown(self) -> bool:
        """True."""
        return True


def main(words: list[str]) -> int:
    """Run torchrun; the exit code of the first rank that failed, 128 + n for signal n, 75 for `Preempted` ranks."""
    end_with_parent()
    for name in list(logging.root.manager.loggerDict):  # the launching process tells the story, once
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    rendezvous_handler_registry.register("ds-loopback", LoopbackRendezvous.create)
    split = words.index("--")
    script, *script_arguments = words[split + 1 :]
    arguments = torchrun.parse_args([*words[:split], script])
    arguments.training_script_args = script_arguments
    keeps_logs = arguments.log_dir is not None
    if not keeps_logs:
        arguments.log_dir = os.environ.get("DS_LAUNCH_SCRATCH")

    def are_preempted() -> bool:
        return _are_preempted(Path(arguments.log_dir), arguments.rdzv_id, int(arguments.nproc_per_node))

    if Path("/proc/self/stat").exists():
        arguments.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"
        Passing(float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")), are_preempted).install()
    watch = _watch_peers(arguments)
    failed = True
    try:
        torchrun.run(arguments)
        failed = False
    except ChildFailedError as error:
        logs = _logs(Path(arguments.log_dir), arguments.rdzv_id) if keeps_logs else {}
        failures = tuple(_failure(rank, failure, logs) for rank, failure in error.failures.items())
        return _report(failures)
    except SignalException as stopped:
        failed = not are_preempted()
        if watch is not None and watch.has_stopped_us:
            return 1
        return 128 + int(stopped.sigval) if failed else Preempted.exit_code
    finally:
        if watch is not None:
            watch.end(failed=failed)
    return Preempted.exit_code if are_preempted() else 0


def _watch_peers(arguments: Any) -> PeerWatch | None:
    if int(arguments.nnodes) == 1:
        return None
    watch = PeerWatch(arguments.master_addr, int(arguments.master_port), int(arguments.node_rank))
    watch.start()
    return watch


def _are_preempted(folder: Path, run_id: str, ranks: int) -> bool:
    """Whether every local rank of the last attempt left word that it saved and stopped."""
    words: dict[str, list[bool]] = {}
    for path in folder.glob(f"{run_id}_*/attempt_*/*/error.json"):
        words.setdefault(path.parts[-3], []).append(was_preempted(path))
    last = max(words, key=lambda name: int(name.removeprefix("attempt_")), default=None)
    return last is not None and words[last] == [True] * ranks


def _logs(folder: Path, run_id: str) -> dict[int, str]:
    """Each local rank's stderr of the last attempt."""
    found = sorted(folder.glob(f"{run_id}_*/attempt_*/*/stderr.log"), key=lambda path: int(path.parts[-3][8:]))
    return {int(path.parent.name): str(path) for path in found}


def _failure(rank: int, failure: ProcessFailure, logs: dict[int, str]) -> RankFailure:
    message: Any = failure.error_file_data.get("message", "")
    told = isinstance(message, dict)
    info = message.get("extraInfo", {}) if told else {}
    return RankFailure(
        rank=rank,
        local_rank=failure.local_rank,
        exit_code=failure.exitcode,
        pid=failure.pid,
        error=str(message["message"]) if told else "",
        traceback=str(info.get("py_callstack", "")),
        time_s=float(info.get("time_s", failure.timestamp)),
        log=logs.get(failure.local_rank, ""),
    )


def _report(failures: tuple[RankFailure, ...]) -> int:
    path = os.environ.get(REPORT_VARIABLE)
    if path is not None:
        write_failures(Path(path), failures)
    first = first_failure(failures)
    return first.exit_code if first.exit_code >= 0 else 128 - first.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
