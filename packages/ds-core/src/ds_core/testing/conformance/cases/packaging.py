"""Level 0: the wheel's metadata and its plugin module, which every process that imports ds_core pays for."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from importlib.metadata import Distribution
from typing import Any

from ds_core.hooks import HOOK_API
from ds_core.plugins.requirements import unmet_requirement
from ds_core.plugins.scan import normalize
from ds_core.testing.conformance.case import Group, Needs
from ds_core.testing.conformance.kit import Kit

__all__ = ["GROUPS"]

WHEEL = Group("packaging", level=0)
GROUPS = (WHEEL,)

ANYWHERE = Needs(device=False)

_IMPORT = """\
import json, os, sys
import ds_core
before, changed, watching = set(sys.modules), set(), True
def watch(event, arguments):
    if watching and event in ("os.putenv", "os.unsetenv"):
        changed.add(os.fsdecode(arguments[0]))
sys.addaudithook(watch)
import {module}
watching = False
new = {{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
print("\\n" + json.dumps({{"modules": sorted(new), "environ": sorted(changed)}}))
"""


def _distribution(kit: Kit) -> Distribution:
    return importlib.metadata.distribution(kit.record.dist)


def _own_wheel(kit: Kit) -> Distribution:
    if normalize(kit.record.dist) == "ds-core":
        kit.lacks("own", "a wheel of its own", "the device comes with ds-core, which has no wheel to check")
    return _distribution(kit)


@WHEEL.case(
    "an entry point of group ds_core.plugins names a module that registers and offers the accelerator", ANYWHERE
)
def plugin_registers(kit: Kit) -> None:
    kit.expect(kit.record.is_active, "a plugin in state registered", kit.record.describe())
    kit.expect(kit.record.module is not None, "a module", kit.record.entry_point)
    kit.expect(kit.entry.name == kit.bench.target.name, f"an entry named {kit.bench.target.name}", kit.entry.name)


@WHEEL.case("the plugin module states DS_HOOK_API = (major, minor) of the hooks it was written for", ANYWHERE)
def hook_api_is_stated(kit: Kit) -> None:
    stated = getattr(kit.record.module, "DS_HOOK_API", None)
    kit.expect(isinstance(stated, tuple) and len(stated) == 2, "DS_HOOK_API, a pair of integers", stated)
    assert isinstance(stated, tuple)
    kit.expect(stated[0] == HOOK_API[0] and stated[1] <= HOOK_API[1], f"at most {HOOK_API}, same major", stated)


@WHEEL.case("the plugin's hooks return what the hook specs allow", ANYWHERE)
def hooks_answer(kit: Kit) -> None:
    from ds_core.plugins import manager

    for hook in ("ds_accelerators", "ds_ops", "ds_comm_backends", "ds_optimizers", "ds_commands"):
        manager().collect(hook)
    kit.expect(not kit.record.faults, "no faults", kit.record.faults)


def _import_alone(kit: Kit) -> dict[str, Any]:
    """What the import of the plugin module does to a process in which no other plugin was loaded."""
    code = _IMPORT.format(module=kit.record.entry_point)
    env = {key: value for key, value in os.environ.items() if key != "DS_PLUGINS"} | {"DS_PLUGINS_AUTOLOAD": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=50, check=False
    )
    kit.expect(done.returncode == 0, "the plugin module imports", done.stderr[-800:])
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@WHEEL.case("the plugin module imports the standard library, ds_core.hooks and its own package only", ANYWHERE)
def import_is_light(kit: Kit) -> None:
    own = kit.record.entry_point.partition(".")[0]
    heavy = [name for name in _import_alone(kit)["modules"] if name not in (own, "ds_core")]
    kit.expect(not heavy, "no third-party modules after the import of the plugin module", heavy)


@WHEEL.case("importing the plugin module changes no environment variable", ANYWHERE)
def import_changes_nothing(kit: Kit) -> None:
    changed = _import_alone(kit)["environ"]
    kit.expect(not changed, "the environment as it was", f"{', '.join(changed)} set")


@WHEEL.case("Requires-Dist names ds-core with the range the wheel was written for, ds-core~=X.Y", ANYWHERE)
def requires_core(kit: Kit) -> None:
    lines = _own_wheel(kit).metadata.get_all("Requires-Dist") or []
    core = [line for line in lines if normalize(line.split("~")[0].split(">")[0].split("=")[0].strip()) == "ds-core"]
    kit.expect(bool(core), "a line like 'ds-core~=0.1' among Requires-Dist", lines)
    kit.expect("~=" in core[0] or ("<" in core[0]), "a range with an upper end, such as ds-core~=0.1", core[0])
    misfit = unmet_requirement(kit.record.wheel, lines)
    kit.expect(not misfit, "requirements met by the installed ds-core and torch", misfit)


@WHEEL.case("the wheel's metadata says what it is: Name, Version, Summary, Requires-Python", ANYWHERE)
def metadata_is_there(kit: Kit) -> None:
    from packaging.version import InvalidVersion, Version

    metadata = _own_wheel(kit).metadata
    missing = [name for name in ("Name", "Version", "Summary", "Requires-Python") if not metadata[name]]
    kit.expect(not missing, "metadata fields", f"no {', '.join(missing)}")
    try:
        Version(metadata["Version"])
    except InvalidVersion:
        kit.expect(False, "a version as PEP 440 has it", metadata["Version"])


@WHEEL.case("a wheel with native libraries has a platform tag, and one without has the tag py3-none-any", ANYWHERE)
def tag_fits_what_is_inside(kit: Kit) -> None:
    found = _own_wheel(kit)
    text, files = found.read_text("WHEEL"), found.files
    direct = found.read_text("direct_url.json") or ""
    if text is None or files is None or '"editable": true' in direct:
        kit.lacks("installation", "an installed wheel", "the wheel is installed editable, which leaves no file list")
    tags = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Tag:")]
    native = [str(path) for path in files if path.suffix in (".so", ".dylib", ".pyd", ".dll") or ".so." in path.name]
    pure = bool(tags) and all(tag.endswith("-any") for tag in tags)
    kit.expect(bool(tags), "a line Tag: in WHEEL", text)
    if native:
        kit.expect(not pure, "a platform tag such as py3-none-manylinux_2_28_x86_64", f"{tags} with {native[:3]}")
    kit.figures["native_libraries"] = len(native)


@WHEEL.case("an accelerator's name is short and lower case, and not one that is reserved for another wheel", ANYWHERE)
def name_is_its_own(kit: Kit) -> None:
    from ds_core.plugins import RESERVED

    name = kit.entry.name
    kit.expect(name == name.lower() and name.isidentifier(), "a lower-case name of letters, digits and _", name)
    owner = RESERVED.get(name, normalize(kit.record.dist))
    kit.expect(owner == normalize(kit.record.dist), "a name of its own", f"{name!r}, which is reserved for {owner}")
