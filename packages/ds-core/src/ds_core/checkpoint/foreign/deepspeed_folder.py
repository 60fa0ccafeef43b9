"""The files of a DeepSpeed checkpoint: which are there, which rank wrote each, and what makes a folder one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_core.checkpoint.foreign.torch_file import read_torch_file
from ds_core.checkpoint.storage.files import read_whole
from ds_core.errors import CheckpointError

__all__ = ["DeepspeedFolder", "named_tag"]

_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
MAX_TAG = 200
_ELSEWHERE = {
    "layer_*-model_*states.pt": "pipeline stages",
    "*expert_*_model_states.pt": "experts",
    "expp_rank_*_optim_states.pt": "experts",
}
_MERGE = (
    "merge it first, where it was written: `python -m deepspeed.checkpoint.ds_to_universal --input_folder <tag> "
    "--output_folder <tag>_universal`, and load that"
)


def named_tag(directory: Path, tag: str | None, latest: str = "latest") -> str | None:
    """`tag`, or the one that the file `latest` names; None when there is neither, or it names no folder in this one."""
    if tag is None:
        try:
            tag = read_whole(directory / latest, 4096).decode().strip()
        except (OSError, UnicodeDecodeError, CheckpointError):
            return None
    is_name = 0 < len(tag) <= MAX_TAG and Path(tag).name == tag and not tag.startswith(".") and "\0" not in tag
    return tag if is_name else None


@dataclass(frozen=True, slots=True)
class DeepspeedFolder:
    """A folder of files that DeepSpeed's ranks wrote.

    Attributes:
        path: the folder.
        model: files of weights and counters by rank; one file where weights are not sharded.
        optimizer: files of optimizer states by data-parallel rank; none where it is not sharded.
    """

    path: Path
    model: list[Path]
    optimizer: list[Path]

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether DeepSpeed's files are in `path`."""
        return path.is_dir() and any(_MODEL.fullmatch(file.name) for file in path.glob("*_model_states.pt"))

    @classmethod
    def find(cls, path: Path, *, merged: bool = False) -> DeepspeedFolder:
        """The folder.

        Args:
            path: of it.
            merged: it is universal: parameters are whole, so of tensor-parallel ranks the first will do.

        Raises:
            CheckpointError: a rank's file is missing, or the model was split otherwise than over data-parallel ranks.
        """
        for pattern, what in _ELSEWHERE.items():
            found = next(iter(sorted(path.glob(pattern))), None)
            if found is not None:
                raise CheckpointError(f"{path} was written by a model of {what} ({found.name}); {_MERGE}")
        model = cls._ranked(path, _MODEL, merged)
        optimizer = cls._ranked(path, _OPTIMIZER, merged)
        if not model:
            raise CheckpointError(f"{path} has no file *mp_rank_00_model_states.pt")
        return cls(path, model, optimizer)

    @staticmethod
    def _ranked(path: Path, pattern: re.Pattern[str], merged: bool) -> list[Path]:
        found: dict[int, Path] = {}
        for file in sorted(path.iterdir()):
            match = pattern.fullmatch(file.name)
            if match is None or (merged and int(match[2])):
                continue
            if int(match[2]):
                raise CheckpointError(f"{path} was written by a tensor-parallel model ({file.name}); {_MERGE}")
            rank = int(match[1] or 0)
            if rank in found:
                raise CheckpointError(
                    f"{path} has {found[rank].name} and {file.name} of one rank; delete the older one"
                )
            found[rank] = file
        missing = sorted(set(range(len(found))) - set(found))
        if missing:
            raise CheckpointError(
                f"{path} lacks the file of rank {missing[0]} ({next(iter(found.values())).name} is there); copy it back"
            )
        return [found[rank] for rank in sorted(found)]

    def read(self, path: Path) -> dict[str, Any]:
        """The dict in one of the files.

        Raises:
            CheckpointError: it is damaged, holds no dict, or asks for something that is not allowed.
        """
        content = read_torch_file(path, within=self.path)
        if type(content) is not dict:
            raise CheckpointError(f"{path} holds a {type(content).__name__}; a file of DeepSpeed holds a dict")
        return content
