"""The launcher over ssh: pdsh starts one process on every machine, and a second call of it passes signals on."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import ClassVar

from ds_core.errors import LaunchError
from ds_core.launch.remote import RemoteLauncher
from ds_core.launch.spec import LOOPBACK, LaunchSpec

__all__ = ["PdshLauncher"]

CONNECT_S = 10


class PdshLauncher(RemoteLauncher):
    """pdsh, which tells each machine its name with ``%h``."""

    name: ClassVar[str] = "pdsh"
    program: ClassVar[str] = "pdsh"
    program_hint: ClassVar[str] = (
        "install it (apt install pdsh), or start the command on every machine with its --node-rank"
    )
    has_venv_script: ClassVar[bool] = True
    has_ssh_port: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._couriers: list[subprocess.Popen[bytes]] = []

    def check(self, spec: LaunchSpec) -> None:
        """As for every launcher; tries too whether each machine can be reached without a password."""
        super().check(spec)
        if spec.ssh_check and os.environ.get("PDSH_RCMD_TYPE", "ssh") == "ssh" and shutil.which("ssh") is not None:
            _check_ssh(spec)

    def command(self, spec: LaunchSpec) -> list[str]:
        """pdsh: the highest exit code of the machines (-S), all of them at once (-f)."""
        exports = [f"export {name}={_quoted(value)};" for name, value in self.handed_on(spec).items()]
        enter = [f". {_quoted(spec.venv_script)};"] if spec.venv_script is not None else []
        python, *words = self.node_command(spec, "--host=%h")
        started = [*enter, *exports, "python" if enter else _quoted(python), *words]
        return [*self._pdsh(spec), "-S", *spec.launcher_args, " ".join(started)]

    def environment(self, spec: LaunchSpec, environ: Mapping[str, str]) -> dict[str, str]:
        """Also says that pdsh uses ssh, and at which port."""
        made = super().environment(spec, environ)
        made.setdefault("PDSH_RCMD_TYPE", "ssh")
        if spec.ssh_port is not None:
            made["PDSH_SSH_ARGS_APPEND"] = f"{made.get('PDSH_SSH_ARGS_APPEND', '')} -p {spec.ssh_port}".strip()
        return made

    def deliver(self, spec: LaunchSpec, process: subprocess.Popen[bytes], number: int) -> None:
        """Signals the job's processes on the machines: pdsh would end itself and leave them."""
        words = [_quoted(sys.executable), *("-m", "ds_core.launch.node", f"--job={self._job}", "--host=%h")]
        command = [*self._pdsh(spec), *spec.launcher_args, " ".join([*words, f"--signal={int(number)}"])]
        if spec.venv_script is not None:
            command[-1] = f". {_quoted(spec.venv_script)}; python {' '.join(words[1:])} --signal={int(number)}"
        environ = self.environment(spec, os.environ)
        # Not waited for: a handler of signals calls this, and the machines' own end is what is waited for.
        self._couriers.append(subprocess.Popen(command, env=environ, start_new_session=True))

    def end_now(self, spec: LaunchSpec, process: subprocess.Popen[bytes]) -> None:
        """Kills what runs on the machines, whose ranks notice, and pdsh."""
        self.deliver(spec, process, signal.SIGKILL)
        process.kill()

    def hears(self, process: subprocess.Popen[bytes], number: int) -> bool:
        """Every machine decides for itself."""
        return True

    def finish(self, spec: LaunchSpec, process: subprocess.Popen[bytes]) -> None:
        """When pdsh itself was ended, what it started goes on: asks it to end."""
        if process.returncode < 0:
            self.deliver(spec, process, signal.SIGTERM)
        for courier in self._couriers:
            try:
                courier.wait(timeout=spec.grace_s + CONNECT_S)
            except subprocess.TimeoutExpired:
                courier.kill()

    def _pdsh(self, spec: LaunchSpec) -> list[str]:
        return [self.program, "-f", "1024", "-w", ",".join(spec.hosts)]


def _quoted(text: str) -> str:
    """For a shell over there, past pdsh, which takes a percent sign for the beginning of a name of its own."""
    return shlex.quote(text).replace("%", "%%")


def _check_ssh(spec: LaunchSpec) -> None:
    port = [] if spec.ssh_port is None else ["-p", str(spec.ssh_port)]
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", *port]
    tried = {
        host: subprocess.Popen(["ssh", *options, host, "true"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for host in spec.hosts
        if host not in LOOPBACK or spec.ssh_port is not None
    }
    failed = []
    for host, process in tried.items():
        _, told = process.communicate()
        if process.returncode:
            failed.append(f"{host} ({told.decode(errors='replace').strip() or f'exit code {process.returncode}'})")
    if failed:
        raise LaunchError(
            f"cannot reach {', '.join(failed)} by ssh without a password: put your key there (ssh-copy-id), or leave "
            "this check out with --no-ssh-check"
        )
