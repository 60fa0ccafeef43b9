"""The plugin system against real wheels: each fixture is built, installed by pip, and met in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ds_core.hooks import HOOK_API

HOOKS = re.escape(".".join(map(str, HOOK_API)))
STATED = re.escape(str(HOOK_API))

WHEELS = Path(__file__).parent / "fixtures" / "wheels"
STALE = "good-stale"

BUILD = """
import os, sys
from hatchling.build import build_wheel
out = sys.argv[1]
for folder in sys.argv[2:]:
    os.chdir(folder)
    print(build_wheel(out))
"""
STRANGERS = (
    "acme-good,acme-broken-import,acme-missing-library,acme-exits,acme-handshake,acme-hook-typo,acme-hook-argument,"
    "acme-unmarked,acme-too-new-core,acme-too-new-torch,acme-probe-raises,acme-bad-result,acme-reentrant,"
    "acme-asks-too-early"
)
"""Every fixture that can be named by its wheel; the allow-list keeps wheels of this environment out of the picture."""


@dataclass(frozen=True)
class Sites:
    """Directories that wheels were installed into, and a way to run programs that see them."""

    main: Path
    stale: Path

    def run(self, code: str, *arguments: str, stale: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs `code` in a process whose path holds the fixture wheels; `stale` puts the older one first or last."""
        path = {"": [self.main], "first": [self.stale, self.main], "last": [self.main, self.stale]}[stale]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("DS_") and key != "RANK"}
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=clean | {"PYTHONPATH": os.pathsep.join(map(str, path))} | environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ds(self, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
        """Runs the command line."""
        return self.run("import sys; from ds_core.cli import main; sys.exit(main())", *arguments, **options)

    def states(self, **options: str) -> dict[str, dict[str, object]]:
        """``ds plugins list --json`` by plugin id."""
        done = self.ds("plugins", "list", "--json", **options)
        assert done.returncode == 0, done.stderr
        return {record["id"]: record for record in json.loads(done.stdout)}

    def error(self, statement: str, **options: str) -> str:
        """The last line of what `statement` raises, after it was checked that it raised."""
        done = self.run(statement, **options)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr.strip()


def install(wheels: Sequence[Path], target: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-deps", "--no-compile", "--target", str(target), *map(str, wheels)),
        ],
        check=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    house = tmp_path_factory.mktemp("house")
    folders = sorted(path.parent for path in WHEELS.glob("*/pyproject.toml"))
    built: dict[str, Path] = {}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(house), *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    for folder, name in zip(folders, done.stdout.split(), strict=True):
        built[folder.name] = house / name
    found = Sites(tmp_path_factory.mktemp("main"), tmp_path_factory.mktemp("stale"))
    install([wheel for folder, wheel in built.items() if folder != STALE], found.main)
    install([built[STALE]], found.stale)
    return found


@pytest.fixture(scope="module")
def records(sites: Sites) -> dict[str, dict[str, object]]:
    return sites.states(DS_PLUGINS=STRANGERS)


@pytest.mark.parametrize(
    ("plugin", "state", "reason"),
    [
        ("acme-good:good", "registered", r"^$"),
        ("acme-reentrant:reentrant", "registered", r"^$"),
        (
            "acme-broken-import:vulkan",
            "import error",
            r"^failed while loading \(ModuleNotFoundError: No module named 'acme_module_nobody_has'\) at "
            r".*acme_broken_import\.py:5$",
        ),
        (
            "acme-missing-library:native",
            "import error",
            r"^failed while loading \(OSError: libacme_missing\.so\.2: .*\) at .*acme_missing_library\.py:9$",
        ),
        (
            "acme-exits:exits",
            "import error",
            r"^failed while loading \(SystemExit: acme needs a licence key\) at .*acme_exits\.py:7$",
        ),
        (
            "acme-asks-too-early:early",
            "import error",
            r"a plugin asks for other plugins while plugins are being loaded; move that into a hook",
        ),
        (
            "acme-handshake:handshake-major",
            "incompatible",
            rf"^acme-handshake 1\.0 needs hook API 2\.0, this is {HOOKS} \(ds-core [\d.]+\)\. "
            r"Upgrade ds-core \(pip install -U ds-core\), or install an older acme-handshake$",
        ),
        ("acme-handshake:handshake-minor", "incompatible", rf"needs hook API 1\.7, this is {HOOKS} .*Upgrade ds-core"),
        (
            "acme-handshake:handshake-old",
            "incompatible",
            rf"was written for hook API 0\.9, this is {HOOKS} "
            r".*Upgrade acme-handshake \(pip install -U acme-handshake\)",
        ),
        (
            "acme-handshake:handshake-text",
            "incompatible",
            rf"must be a tuple of two integers such as {STATED}, got '1\.0'$",
        ),
        (
            "acme-handshake:handshake-missing",
            "incompatible",
            rf"states no DS_HOOK_API; its authors must add `DS_HOOK_API = {STATED}` to acme_handshake\.missing$",
        ),
        (
            "acme-hook-typo:typo",
            "incompatible",
            r"^acme-hook-typo 1\.0 implements hook 'ds_optimisers', which ds-core does not have\. "
            r"Did you mean 'ds_optimizers'\?",
        ),
        (
            "acme-hook-argument:argument",
            "incompatible",
            r"implements hook 'ds_parts' with argument 'built', which it does not have\. Did you mean 'build'\? "
            r"Arguments of ds_parts: build$",
        ),
        ("acme-unmarked:unmarked", "incompatible", r"^acme_unmarked\.ds_optimizers lacks the @hookimpl decorator"),
        (
            "acme-too-new-core:too-new-core",
            "incompatible",
            r"^acme-too-new-core 1\.0 needs ds-core>=99, but ds-core [\d.]+ is installed\. "
            r"Run: pip install 'ds-core>=99', or install another version of acme-too-new-core",
        ),
        ("acme-too-new-torch:too-new-torch", "incompatible", r"needs torch>=99, but torch \S+ is installed"),
        ("acme-twin-a:twin", "blocked", r"^DS_PLUGINS does not name it$"),
    ],
)
def test_each_plugin_has_the_state_it_earned(
    records: dict[str, dict[str, object]], plugin: str, state: str, reason: str
) -> None:
    assert records[plugin]["state"] == state
    assert re.search(reason, str(records[plugin]["reason"])), records[plugin]["reason"]


def test_records_say_where_when_and_how(records: dict[str, dict[str, object]], sites: Sites) -> None:
    good, broken = records["acme-good:good"], records["acme-broken-import:vulkan"]
    assert good["location"] == str(sites.main / "acme_good" / "plugin.py")
    assert good["version"] == "1.0"
    assert good["api"] == "1.0"
    assert [step["state"] for step in broken["history"]] == ["discovered", "import error"]  # type: ignore[attr-defined]
    assert "acme_module_nobody_has" in str(broken["traceback"])


def test_listing_imports_no_torch(sites: Sites) -> None:
    code = """
import sys
from ds_core.cli import main
for words in (["--help"], ["plugins", "list"], ["plugins", "why", "good"], ["ops"]):
    assert main(words) == 0
    assert "torch" not in sys.modules, words
"""
    done = sites.run(code, DS_PLUGINS=STRANGERS)
    assert done.returncode == 0, done.stderr


def test_every_broken_wheel_is_one_warning_line_and_no_more(sites: Sites) -> None:
    done = sites.run("import ds_core.plugins; ds_core.plugins.discover()", DS_PLUGINS=STRANGERS)
    lines = done.stderr.strip().splitlines()
    about = [line.split(" ")[1] for line in lines]
    assert len(about) == len(set(about)) == 14, lines
    assert all(line.startswith("plugin acme-") and line.endswith("Details: ds plugins doctor") for line in lines)
    other = sites.run("import ds_core.plugins; ds_core.plugins.discover()", DS_PLUGINS=STRANGERS, RANK="1")
    assert other.stderr == ""


def test_half_registered_plugins_are_taken_back(sites: Sites) -> None:
    code = """
from ds_core.plugins import discover, loaded_manager
discover()
print([p.item.name for p in loaded_manager().collect("ds_optimizers") if p.record.dist.startswith("acme")])
"""
    done = sites.run(code, DS_PLUGINS="acme-good,acme-hook-typo,acme-hook-argument")
    assert done.stdout.strip() == "['AcmeStep', 'AcmeGone']"


def test_why_tells_history_and_traceback(sites: Sites) -> None:
    done = sites.ds("plugins", "why", "vulkan", DS_PLUGINS=STRANGERS)
    assert done.returncode == 0
    assert "Traceback (most recent call last):" in done.stdout
    assert "ModuleNotFoundError: No module named 'acme_module_nobody_has'" in done.stdout
    assert "set DS_PLUGINS_DISABLE=acme-broken-import:vulkan" in done.stdout


def test_doctor_names_every_problem_and_exits_with_1(sites: Sites) -> None:
    done = sites.ds("plugins", "doctor", "--json", DS_PLUGINS=STRANGERS)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    ids = {record["id"] for record in told["problems"] if record["dist"].startswith("acme")}
    assert {"acme-bad-result:bad-result", "acme-probe-raises:probe-raises", "acme-hook-typo:typo"} <= ids
    assert "acme-good:good" not in ids
    assert all(record["remedy"] for record in told["problems"])
    reasons = {record["id"]: record["reason"] for record in told["problems"]}
    assert reasons["acme-bad-result:bad-result"] == (
        "ds_optimizers must return OptimizerEntry items, item 0 is dict: {'name': 'adam'}"
    )
    assert "driver handshake timed out" in reasons["acme-probe-raises:probe-raises"]


def test_strict_raises_on_anything_recorded(sites: Sites) -> None:
    told = sites.error(
        "import ds_core.plugins; ds_core.plugins.manager()",
        DS_PLUGINS_DISABLE="acme-twin-a,acme-twin-b,acme-reserved",
        DS_PLUGINS_STRICT="1",
    )
    assert "PluginError: DS_PLUGINS_STRICT=1 and 14 installed plugin(s) are not in order:" in told
    assert "plugin acme-hook-typo:typo" in told


def test_a_plugin_named_in_the_environment_must_work(sites: Sites) -> None:
    told = sites.error("import ds_core.plugins; ds_core.plugins.manager()", DS_PLUGINS="acme-missing-library")
    assert "OSError: libacme_missing.so.2" in told.partition("The above exception")[0]  # the cause is chained
    assert "Requested by DS_PLUGINS." in told


@pytest.mark.parametrize("switch", ["DS_PLUGINS", "DS_PLUGINS_DISABLE"])
def test_a_name_that_means_nothing_is_an_error_with_the_nearest(sites: Sites, switch: str) -> None:
    told = sites.error("import ds_core.plugins; ds_core.plugins.manager()", **{switch: "acme-god"})
    assert f"{switch} names 'acme-god', which matches no installed plugin. Did you mean 'acme-good'?" in told


def test_autoload_off_leaves_core_alone(sites: Sites) -> None:
    states = sites.states(DS_PLUGINS_AUTOLOAD="0")
    assert states["ds-core:builtin"]["state"] == "registered"
    assert {record["state"] for id_, record in states.items() if id_ != "ds-core:builtin"} == {"blocked"}


# ---- two wheels of one name


def test_twins_are_both_left_out_until_somebody_decides(sites: Sites) -> None:
    states = sites.states(DS_PLUGINS="twin")
    for own, other in (("a", "b"), ("b", "a")):
        assert states[f"acme-twin-{own}:twin"]["state"] == "shadowed"
        assert str(states[f"acme-twin-{own}:twin"]["reason"]) == (
            f"2 wheels offer a plugin named 'twin': acme-twin-a 1.0 ({sites.main}) and acme-twin-b 1.0 ({sites.main}). "
            f"To use acme-twin-{own}:twin, set DS_PLUGINS_DISABLE=acme-twin-{other}:twin, or uninstall the other"
        )


SELECT = "from ds_core.accelerator import select; print(select({name}).id)"
QUIET = "acme-broken-import,acme-probe-raises"
"""Accelerators that would stop an automatic choice."""


def test_asking_for_a_twin_names_both_and_the_lines_that_decide(sites: Sites) -> None:
    told = sites.error(SELECT.format(name="'twin'"))
    assert (
        f"PluginConflictError: 2 wheels offer accelerator 'twin': acme-twin-a 1.0 ({sites.main}) and "
        f"acme-twin-b 1.0 ({sites.main}). Choose with DS_ACCELERATOR=acme-twin-a:twin or "
        "DS_ACCELERATOR=acme-twin-b:twin, or uninstall one. Requested by the argument accelerator=."
    ) in told


@pytest.mark.parametrize(
    "environ", [{"DS_ACCELERATOR": "acme-twin-b:twin"}, {"DS_ACCELERATOR": "twin", "DS_PLUGINS_DISABLE": "acme-twin-a"}]
)
def test_each_of_those_lines_decides(sites: Sites, environ: dict[str, str]) -> None:
    done = sites.run(SELECT.format(name=""), **environ)
    assert done.stdout.strip() == "acme-twin-b:twin", done.stderr


def test_a_reserved_name_needs_the_full_id(sites: Sites) -> None:
    told = sites.error(SELECT.format(name=""), DS_ACCELERATOR="cuda", DS_PLUGINS_DISABLE="acme-rival")
    assert "accelerator 'cuda' (ds-accel-cuda 0.1.0) is installed but not usable here: torch" in told
    done = sites.run(SELECT.format(name=""), DS_ACCELERATOR="acme-reserved:cuda")
    assert done.stdout.strip() == "acme-reserved:cuda", done.stderr


# ---- the choice of the accelerator


def test_a_broken_accelerator_wheel_stops_the_fall_to_the_cpu(sites: Sites) -> None:
    told = sites.error(SELECT.format(name=""), DS_PLUGINS_DISABLE="acme-rival,acme-twin-a,acme-twin-b,acme-reserved")
    assert "AcceleratorFallbackError: this would run on the CPU although an accelerator is installed:" in told
    assert "acme-probe-raises:probing (acme-probe-raises 1.0): the probe raised OSError: driver handshake" in told
    assert "plugin acme-broken-import:vulkan (acme-broken-import 1.0): import error" in told
    assert "acme-hook-typo" not in told.rpartition("AcceleratorFallbackError")[2]  # broken, but no accelerator
    assert "DS_ALLOW_CPU_FALLBACK=1" in told


@pytest.mark.parametrize("environ", [{"DS_ALLOW_CPU_FALLBACK": "1"}, {"DS_ACCELERATOR": "cpu"}])
def test_unless_it_is_wanted(sites: Sites, environ: dict[str, str]) -> None:
    code = "from ds_core.accelerator import select; print(select().device_type)"
    done = sites.run(code, DS_PLUGINS_DISABLE="acme-rival,acme-twin-a,acme-twin-b,acme-reserved", **environ)
    assert done.stdout.strip() == "cpu", done.stderr


def test_a_probe_that_raised_is_chained_when_it_was_asked_for(sites: Sites) -> None:
    told = sites.error(SELECT.format(name="'probing'"))
    assert "OSError: driver handshake timed out" in told.partition("The above exception")[0]
    assert "accelerator 'probing' (acme-probe-raises 1.0) is installed but not usable here: the probe raised" in told


def test_an_absent_device_is_an_answer_and_no_problem(sites: Sites) -> None:
    told = sites.error(SELECT.format(name="'acme'"))
    assert "accelerator 'acme' (acme-good 1.0) is installed but not usable here: no /dev/acme0." in told
    states = sites.states(DS_PLUGINS="acme-good")
    assert states["acme-good:good"]["problem"] is False


def test_equals_are_never_chosen_between(sites: Sites) -> None:
    told = sites.error(SELECT.format(name=""), DS_PLUGINS="acme-twin-a,acme-rival", PYTHONHASHSEED="1")
    assert "2 accelerators are equally usable: rival (2 devices, acme-rival 1.0" in told
    assert "Set DS_ACCELERATOR=rival or DS_ACCELERATOR=twin." in told


# ---- two versions of one wheel


@pytest.mark.parametrize(("order", "used", "hidden"), [("first", "0.5", "1.0"), ("last", "1.0", "0.5")])
def test_a_stale_copy_on_the_path_is_named(sites: Sites, order: str, used: str, hidden: str) -> None:
    done = sites.ds("plugins", "list", "--json", stale=order, DS_PLUGINS="acme-good")
    found = [record for record in json.loads(done.stdout) if record["id"] == "acme-good:good"]
    assert [(record["version"], record["state"]) for record in found] == [(used, "registered"), (hidden, "shadowed")]
    assert str(sites.main) in found[1]["reason"]
    assert str(sites.stale) in found[1]["reason"]


# ---- commands and references of a stranger's wheel


def test_a_strangers_command_runs_like_ours(sites: Sites) -> None:
    told = sites.ds("--help", DS_PLUGINS="acme-good").stdout
    assert re.search(r"^  acme +Say what the wheel has to say\.$", told, flags=re.MULTILINE)
    assert sites.ds("acme", "one", "--two", DS_PLUGINS="acme-good").stdout == "one --two\n"


def test_an_error_raised_on_purpose_is_one_message_and_exit_code_2(sites: Sites) -> None:
    done = sites.ds("acme", "bad", DS_PLUGINS="acme-good")
    assert (done.returncode, done.stderr) == (2, "ds: error: acme.word must not be 'bad'; use another.\n")
    assert "Traceback" in sites.ds("--traceback", "acme", "bad", DS_PLUGINS="acme-good").stderr


def test_a_reference_to_nothing_names_the_wheel(sites: Sites) -> None:
    code = """
from ds_core.plugins import load_ref, manager
found = manager().by_name("ds_optimizers", "acmegone")
load_ref(found.item.factory, found.record)
"""
    told = sites.error(code, DS_PLUGINS="acme-good")
    assert f"'acme_good.heavy:gone' of acme-good 1.0 ({sites.main}/acme_good/plugin.py): no attribute 'gone'." in told


def test_the_report_holds_a_strangers_rows(sites: Sites) -> None:
    done = sites.ds("report", "--json", DS_PLUGINS="acme-good")
    assert {"section": "acme", "name": "mood", "value": "good", "status": "ok"} in json.loads(done.stdout)
