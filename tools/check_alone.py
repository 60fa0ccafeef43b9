"""Check one accelerator wheel in an environment that has ds-core, it, and nothing else of ours.

Usage: python tools/check_alone.py ds-accel-cuda

Its plugin is there, its package imports without the hardware, and where its device cannot be used it says why.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys

from ds_core.accelerator import candidates
from ds_core.plugins import manager


def main() -> int:
    """Exit status 0 if all of it holds."""
    dist = sys.argv[1]
    installed = {info.metadata["Name"].lower().replace("_", "-") for info in importlib.metadata.distributions()}
    ours = sorted(name for name in installed if name.startswith("ds-"))
    if ours != sorted(["ds-core", dist]):
        return fail(f"{', '.join(ours)} are installed, expected ds-core and {dist} only")
    importlib.import_module(dist.replace("-", "_"))
    problems = [record.describe() for record in manager().problems()]
    if problems:
        return fail("; ".join(problems))
    found = [candidate for candidate in candidates(manager()) if candidate.record.dist == dist]
    for candidate in found:
        if not candidate.is_usable and not candidate.reason:
            return fail(f"{candidate.id} is not usable and does not say why")
        print(f"{candidate.id}: {'usable' if candidate.is_usable else f'not usable: {candidate.reason}'}")
    sections = {row["section"] for row in json.loads(run("report", "--json"))}
    missing = [candidate.id for candidate in found if f"accelerator {candidate.id}" not in sections]
    if missing or not found:
        return fail(f"ds report has no section for {', '.join(missing) or dist}")
    return 0


def run(*arguments: str) -> str:
    """What ``ds`` writes."""
    command = [sys.executable, "-c", "from ds_core.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def fail(reason: str) -> int:
    """Says why, for exit status 1."""
    print(f"{sys.argv[1]}: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
