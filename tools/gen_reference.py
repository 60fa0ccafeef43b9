"""Write the reference pages of the documentation from the installed wheels.

Usage: python tools/gen_reference.py --out docs/reference

Each page comes from what the code itself says: models of config sections, hook specs, the op table, the command line,
and every error that is raised.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from reference_pages import api, cli, config, devices, errors, hooks, ops

PAGES: dict[str, Callable[[], str]] = {
    "api": api.page,
    "cli": cli.page,
    "config": config.page,
    "devices": devices.page,
    "errors": errors.page,
    "hooks": hooks.page,
    "ops": ops.page,
}


def main() -> int:
    """Write the pages."""
    parser = argparse.ArgumentParser(description="Write the reference pages from the installed wheels.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        text = page()
        (options.out / f"{name}.md").write_text(text, encoding="utf-8")
        print(f"{name}.md: {len(text.splitlines())} lines")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
