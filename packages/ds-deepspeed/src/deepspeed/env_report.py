"""The command ``ds_report``: what ``ds report`` says."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

__all__ = ["cli_main", "main"]


def main(hide_operator_status: bool = False, hide_errors_and_warnings: bool = False) -> None:
    """Writes versions, wheels, accelerators and settings; then the ops by device."""
    from ds_core.cli import main as ds

    ds(["report"])
    if not hide_operator_status:
        ds(["ops"])


def cli_main(args: Sequence[str] | None = None) -> None:
    """As `main`, with DeepSpeed's flags."""
    parser = argparse.ArgumentParser("ds_report", description="Report the environment.")
    parser.add_argument("--hide_operator_status", action="store_true", help="do not list the ops")
    parser.add_argument("--hide_errors_and_warnings", action="store_true", help="kept for compatibility")
    given = parser.parse_args(args)
    main(given.hide_operator_status, given.hide_errors_and_warnings)


if __name__ == "__main__":
    cli_main()
