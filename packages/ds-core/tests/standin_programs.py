"""pdsh, ssh, mpirun and srun as stand-ins on PATH: they write down what they were asked and run it on this machine."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

PROGRAM = """#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
name = os.path.basename(sys.argv[0])
with open({log!r}, "a") as file:
    file.write(json.dumps([name, words, dict(os.environ)]) + "\\n")
if "--version" in words:
    print({version!r})
    sys.exit(0)
if name == "ssh":
    sys.exit({ssh_code})


def value(*names):
    for index, word in enumerate(words):
        if word in names:
            return words[index + 1]
        if word.partition("=")[0] in names:
            return word.partition("=")[2]


hosts = [host.partition(":")[0] for host in value("-w", "--host", "-hosts", "--nodelist").split(",")]
# What the real ones start remotely has the variables of a login, not ours: only those that are handed on come along.
kept = ("PATH", "HOME", "TMPDIR", "LANG", "USER", "VIRTUAL_ENV")
base = {{key: text for key, text in os.environ.items() if key in kept}}
started = []
for rank, host in enumerate(hosts):
    extra = {{}}
    if name == "pdsh":
        command = ["sh", "-c", words[-1].replace("%%", "\\0").replace("%h", host).replace("\\0", "%")]
    else:
        command = words[words.index({python!r}):]
    if name == "srun":
        extra = {{**os.environ, "SLURM_PROCID": str(rank), "SLURMD_NODENAME": host}}
    elif name == "mpirun" and "-hosts" in words:
        extra = {{key: os.environ[key] for key in (value("-genvlist") or "").split(",") if key}}
        extra |= {{"PMI_RANK": str(rank), "PMI_SIZE": str(len(hosts))}}
    elif name == "mpirun":
        given = [words[index + 1] for index, word in enumerate(words) if word == "-x"]
        extra = {{"OMPI_COMM_WORLD_RANK": str(rank), **{{key: os.environ[key] for key in given}}}}
    started.append(subprocess.Popen(command, env={{**base, **extra}}, stdin=subprocess.DEVNULL, start_new_session=True))
codes = [process.wait() % 256 for process in started]
sys.exit(max(codes))
"""


def put_on_path(
    folder: Path, monkeypatch, *, version: str = "", ssh_code: int = 0, without: tuple[str, ...] = ()
) -> Path:
    """Puts the stand-ins first on PATH; the file of what they were asked, a line of JSON each."""
    log = folder / "asked.jsonl"
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    text = PROGRAM.format(python=sys.executable, log=str(log), version=version, ssh_code=ssh_code)
    for name in ("pdsh", "ssh", "mpirun", "srun"):
        if name not in without:
            path = bin_folder / name
            path.write_text(text)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    return log


def asked(log: Path, program: str) -> list[tuple[list[str], dict[str, str]]]:
    """The words and variables of each call of one stand-in."""
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [(words, environ) for name, words, environ in rows if name == program]
