"""Consolidation of checkpoints under the names users of DeepSpeed import, and as a command with DeepSpeed's flags.

The work is that of `ds_core.checkpoint.weights`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ds_core.checkpoint.weights.consolidate import (
    convert_zero_checkpoint_to_fp32_state_dict,
    get_fp32_state_dict_from_zero_checkpoint,
    load_state_dict_from_zero_checkpoint,
    to_torch_tensor,
)
from ds_core.checkpoint.weights.state_files import (
    get_checkpoint_files,
    get_model_state_file,
    get_model_state_files,
    get_optim_files,
)
from ds_core.errors import DsError

__all__ = [
    "convert_zero_checkpoint_to_fp32_state_dict",
    "get_checkpoint_files",
    "get_fp32_state_dict_from_zero_checkpoint",
    "get_model_state_file",
    "get_model_state_files",
    "get_optim_files",
    "load_state_dict_from_zero_checkpoint",
    "main",
    "to_torch_tensor",
]


def main(args: Sequence[str] | None = None) -> None:
    """Writes the fp32 weights of a checkpoint as safetensors. Ends the process with 2 where it cannot."""
    parser = argparse.ArgumentParser("zero_to_fp32", description="Write the fp32 weights of a checkpoint.")
    parser.add_argument("checkpoint_dir", help="where checkpoints were saved")
    parser.add_argument("output_dir", help="folder for the .safetensors files")
    parser.add_argument("--max_shard_size", default="5GB", help="largest file")
    parser.add_argument("--safe_serialization", action="store_true", help="kept for compatibility: always so")
    parser.add_argument("-t", "--tag", default=None, help="default the newest")
    parser.add_argument("--exclude_frozen_parameters", action="store_true", help="leave out what was not trained")
    parser.add_argument("-d", "--debug", action="store_true", help="log more")
    given = parser.parse_args(args)
    if given.debug:
        logging.getLogger("ds_core").setLevel(logging.DEBUG)
    try:
        convert_zero_checkpoint_to_fp32_state_dict(
            given.checkpoint_dir,
            given.output_dir,
            max_shard_size=given.max_shard_size,
            tag=given.tag,
            exclude_frozen_parameters=given.exclude_frozen_parameters,
        )
    except DsError as error:
        sys.stderr.write(f"zero_to_fp32: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
