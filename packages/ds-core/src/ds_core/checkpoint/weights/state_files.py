"""Paths of a checkpoint's state files, for programs that find them by DeepSpeed's functions and open them themselves.

Note [Stand-ins]
    Lightning asks where the files of a checkpoint are and reads two things from them with ``torch.load``: the stage,
    and what it passed as client state. A checkpoint of this project has no such files, so that they are made when they
    are asked for, outside of the checkpoint, and go with the process.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from ds_core.checkpoint.storage.client_values import decode
from ds_core.checkpoint.storage.files import MANIFEST
from ds_core.checkpoint.storage.reader import CheckpointReader
from ds_core.errors import CheckpointError

__all__ = ["get_checkpoint_files", "get_model_state_file", "get_model_state_files", "get_optim_files"]

StrPath = str | os.PathLike[str]


def get_optim_files(checkpoint_dir: StrPath) -> list[str]:
    """Files with the optimizer's states in the folder of a tag, in the order of ranks; see Note [Stand-ins].

    Raises:
        CheckpointError: there is none.
    """
    return get_checkpoint_files(checkpoint_dir, "*_optim_states.pt")


def get_model_state_files(checkpoint_dir: StrPath) -> list[str]:
    """Files with the model's states in the folder of a tag, in the order of ranks; see Note [Stand-ins].

    Raises:
        CheckpointError: there is none.
    """
    return get_checkpoint_files(checkpoint_dir, "*_model_states.pt")


def get_model_state_file(checkpoint_dir: StrPath, zero_stage: int) -> str:
    """The first rank's file with the model's states, as it is named at `zero_stage`; see Note [Stand-ins].

    Raises:
        CheckpointError: there is none.
    """
    first = "mp_rank_00_model_states.pt" if zero_stage <= 2 else "zero_pp_rank_0_mp_rank_00_model_states.pt"
    return get_checkpoint_files(checkpoint_dir, first)[0]


def get_checkpoint_files(checkpoint_dir: StrPath, glob_pattern: str) -> list[str]:
    """Files of the folder of a tag that match, in the order of ranks; see Note [Stand-ins].

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(checkpoint_dir)
    if (folder / MANIFEST).is_file():
        folder = _stand_ins(folder)
    found = sorted(folder.glob(glob_pattern), key=lambda path: [int(run) for run in re.findall(r"\d+", path.name)])
    if not found:
        raise CheckpointError(f"{checkpoint_dir} has no file {glob_pattern}; give the folder of a tag")
    return [str(path) for path in found]


def _stand_ins(folder: Path) -> Path:
    """A new folder with a file of each kind, under the names that the stage goes with."""
    reader = CheckpointReader(folder)
    try:
        stage = int(reader.manifest.plan.get("zero_stage", 0))
        client_state: dict[str, Any] = decode(reader.client_state)
    finally:
        reader.close()
    made = Path(tempfile.mkdtemp(prefix="ds-state-files-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    prefix = "zero_pp_rank_0_" if stage == 3 else ""
    torch.save({"optimizer_state_dict": {"zero_stage": stage}}, made / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    torch.save(client_state, made / f"{prefix}mp_rank_00_model_states.pt")
    return made
