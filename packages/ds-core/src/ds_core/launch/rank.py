"""What runs in each rank's process: pins cores, runs the script as ``__main__``, and leaves word of why it failed.

Started by the agent as ``python -m ds_core.launch.rank [--bind-cores[=LIST]] [--local-rank] [--module] SCRIPT
ARGS...``. Imports nothing heavy, so that the script decides when torch is imported.

Note [A rank leaves without native teardown]
    A worker thread of gloo gives back the tensors of the last collective after whoever waited for it has gone on. When
    Python finalizes in that moment, the thread is ended inside a destructor, and the process aborts although the script
    succeeded. So a rank does all that Python does at exit (threads, atexit functions, buffers) and then ends at once.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import io
import json
import os
import runpy
import sys
import threading
import time
import traceback
import types
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from ds_core.errors import Preempted
from ds_core.launch.bind import bind
from ds_core.launch.orphan import end_with_parent

__all__ = ["main"]


def main(words: list[str]) -> None:
    """Run the script as Python itself would, with its error written for the agent."""
    flags = {}
    while words and words[0].partition("=")[0] in ("--bind-cores", "--local-rank", "--module"):
        flag, _, value = words.pop(0).partition("=")
        flags[flag] = value
    if "--bind-cores" in flags:
        bind(os.environ, flags["--bind-cores"] or None)  # first of all: threads stay where they are started
    end_with_parent()
    target, *arguments = words
    if "--local-rank" in flags:
        arguments.insert(0, f"--local_rank={os.environ.get('LOCAL_RANK', '0')}")
    sys.argv = [target, *arguments]
    try:
        if "--module" in flags:  # the working directory is on the path already: this process is `python -m` itself
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            _run_file(target)
    except Preempted as stop:
        # Not a failure: torchrun must neither stop the ranks that are a moment behind nor start them again.
        _leave(0 if _leave_word(str(stop), "", preempted=True) else stop.exit_code)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            _leave_word(f"the script called sys.exit({stop.code!r})", "")
        if stop.code is not None and not isinstance(stop.code, int):
            sys.stderr.write(f"{stop.code}\n")
            _leave(1)
        _leave(stop.code or 0)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - the boundary of the process: told to the agent, then as Python would
        own = _without_our_frames(error.__traceback__)
        error = error.with_traceback(own)
        last = traceback.format_exception_only(type(error), error)[-1].strip()
        _leave_word(last, "".join(traceback.format_exception(type(error), error, own)))
        sys.excepthook(type(error), error, own)
        _leave(1)
    _leave(0)


def _leave(code: int) -> NoReturn:
    """Ends the process as Python would, up to its finalization. See Note [A rank leaves without native teardown]."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or a pipe nobody reads any more
            stream.flush()
    os._exit(code & 0xFF)


def _run_file(script: str) -> None:
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=script, __builtins__=builtins, __spec__=None, __cached__=None)
    sys.modules["__main__"] = module
    sys.path[0] = str(Path(script).resolve().parent)  # in place of the working directory, as for `python SCRIPT`
    with io.open_code(str(Path(script).resolve())) as file:
        code = compile(file.read(), script, "exec")
    exec(code, module.__dict__)


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    here = trace
    while here is not None and here.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>", runpy.__file__):
        here = here.tb_next
    return here if here is not None else trace


def _leave_word(error: str, trace: str, *, preempted: bool = False) -> bool:
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        return False
    now_s = time.time()
    info: dict[str, Any] = {"py_callstack": trace, "timestamp": str(int(now_s)), "time_s": repr(now_s)}
    if preempted:
        info["preempted"] = True
    try:
        Path(path).write_text(json.dumps({"message": {"message": error, "extraInfo": info}}), encoding="utf-8")
    except OSError as problem:
        sys.stderr.write(f"ds run: cannot write {path}: {problem}\n")
        return False
    return True


if __name__ == "__main__":
    # The script becomes `__main__`, so this file's own name for itself must not depend on it.
    from ds_core.launch.rank import main as run

    run(sys.argv[1:])
