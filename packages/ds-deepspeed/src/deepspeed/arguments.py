"""Command-line flags of scripts written for DeepSpeed."""

from __future__ import annotations

import argparse

__all__ = ["add_config_arguments"]


def add_config_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """`parser` with ``--deepspeed``, ``--deepspeed_config`` and their former names."""
    from ds_core.api import add_config_arguments

    add_config_arguments(parser)
    group = parser.add_argument_group("DeepSpeed's former names")
    group.add_argument("--deepscale", action="store_true", help="as --deepspeed")
    group.add_argument("--deepscale_config", default=None, help="as --deepspeed_config")
    return parser
