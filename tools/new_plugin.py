"""Make a new plugin wheel from the template.

Usage: python tools/new_plugin.py NAME [--kind feature|accelerator] [--dest packages] [--summary TEXT]

The result builds, installs, passes its own tests, and appears in ``ds plugins list``. Tokens in the template are
``{{dist}}`` ``{{import}}`` ``{{short}}`` ``{{key}}`` ``{{device}}`` ``{{class}}`` ``{{summary}}`` ``{{core_version}}``,
and ``IMPORT_NAME`` in file names.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = Path(__file__).resolve().parent / "plugin_template"
KINDS = ("feature", "accelerator")
TOKEN = re.compile(r"\{\{(\w+)\}\}")
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class NewPluginError(ValueError):
    """The plugin cannot be made as asked."""


def core_version(root: Path = ROOT) -> str:
    """Major and minor of this tree's ds-core, for the dependency range."""
    text = (root / "packages" / "ds-core" / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(\d+\.\d+)', text, flags=re.MULTILINE)
    if found is None:
        raise NewPluginError("packages/ds-core/pyproject.toml states no version of the form X.Y.Z")
    return found.group(1)


def tokens(name: str, kind: str, summary: str | None, version: str) -> dict[str, str]:
    """What each token of the template stands for.

    Raises:
        NewPluginError: `name` cannot be a wheel's name.
    """
    if not NAME.fullmatch(name):
        raise NewPluginError(
            f"name must be lower-case words joined by single dashes, such as ds-spike-guard, got {name!r}"
        )
    short = re.sub(r"^ds-(accel-)?", "", name)
    if not short or short[0].isdigit():
        raise NewPluginError(f"{name!r} leaves nothing usable after its prefix; add a word")
    title = short.replace("-", " ")
    default = f"The {title} device for ds-core" if kind == "accelerator" else f"A limit on the gradient norm ({title})"
    return {
        "dist": name,
        "import": name.replace("-", "_"),
        "short": short,
        "key": short.replace("-", "_"),
        "device": short.replace("-", ""),
        "class": "".join(word.capitalize() for word in short.split("-")),
        "summary": (summary or default).rstrip("."),
        "core_version": version,
    }


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with every token replaced; an unknown token is a fault of the template."""
    return TOKEN.sub(lambda found: values[found.group(1)], text)


def sort_imports(text: str, import_name: str) -> str:
    """`text` with neighbouring imports of ds_core and of the package itself in order, whatever its name is."""
    run = re.compile(rf"(?:^from (?:ds_core|{import_name})[\w.]* import .*\n)+", flags=re.MULTILINE)
    return run.sub(lambda found: "".join(sorted(found.group().splitlines(keepends=True))), text)


def generate(name: str, *, kind: str, dest: Path, summary: str | None = None) -> Path:
    """Write the new package below `dest` and return its folder.

    Raises:
        NewPluginError: the name or summary cannot be used, or the folder exists.
    """
    if summary is not None and (not summary.strip() or any(char in summary for char in '"\\\n{}')):
        raise NewPluginError(f"summary must be one line without quotes, braces or backslashes, got {summary!r}")
    values = tokens(name, kind, summary, core_version())
    folder = dest / name
    if folder.exists():
        raise NewPluginError(f"{folder} exists; choose another name or remove it")
    for layer in ("common", kind):
        for source in sorted(path for path in (TEMPLATE / layer).rglob("*") if path.is_file()):
            if "__pycache__" in source.parts:
                continue
            relative = str(source.relative_to(TEMPLATE / layer)).replace("IMPORT_NAME", values["import"])
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            text = fill(source.read_text(encoding="utf-8"), values)
            target.write_text(sort_imports(text, values["import"]), encoding="utf-8")
    return folder


def main() -> int:
    """Make the plugin and say what comes next."""
    parser = argparse.ArgumentParser(description="Make a new plugin wheel from the template.")
    parser.add_argument("name", help="name of the wheel, such as ds-spike-guard")
    parser.add_argument("--kind", choices=KINDS, default="feature")
    parser.add_argument("--dest", type=Path, default=ROOT / "packages", help="folder to make it in (default: packages)")
    parser.add_argument("--summary", help="one line for the wheel's metadata")
    options = parser.parse_args()
    try:
        folder = generate(options.name, kind=options.kind, dest=options.dest, summary=options.summary)
    except NewPluginError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"made {folder}; next: python -m nox -s tests -- {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
