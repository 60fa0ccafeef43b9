from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ds_core.cli.main import FAULT, command_named, commands, main
from ds_core.errors import UnknownPluginError


def ds(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, with core alone."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DS_")}
    return subprocess.run(
        [sys.executable, "-c", "import sys; from ds_core.cli import main; sys.exit(main())", *words],
        env=clean | {"DS_PLUGINS_AUTOLOAD": "0"} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_the_commands_of_the_plugins_without_loading_them() -> None:
    code = (
        "import sys; from ds_core.cli import main; main(['--help']); "
        "sys.exit(' '.join(sorted({'typer', 'rich', 'torch', 'pydantic'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == ""
    for name in ("config", "ops", "plugins", "report", "run"):
        assert f"\n  {name} " in done.stdout


def test_no_command_is_a_wrong_call_and_version_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == FAULT
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ds-core ")


def test_an_unknown_command_has_a_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin"]) == FAULT
    assert "ds: error: there is no command 'plugin'. Did you mean 'plugins'? Known: " in capsys.readouterr().err
    with pytest.raises(UnknownPluginError):
        command_named("plugin")


def test_every_command_has_one_line_of_help() -> None:
    for provided in commands():
        assert provided.item.help.endswith(".")
        assert "\n" not in provided.item.help


def test_typers_own_errors_keep_their_exit_code() -> None:
    done = ds("plugins", "list", "--no-such-option")
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr
    assert "Traceback" not in done.stderr


def test_list_is_plain_columns_when_it_is_no_terminal() -> None:
    done = ds("plugins", "list")
    assert done.returncode == 0
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["plugin", "version", "api", "state", "ms", "reason", "location"]
    assert [row.split()[3] for row in rows if row.startswith("ds-core:builtin")] == ["registered"]


def test_list_probes_only_when_asked() -> None:
    found = {
        words: {r["id"]: r["state"] for r in json.loads(ds("plugins", "list", "--json", *words).stdout)}
        for words in ((), ("--probe",))
    }
    assert found[()]["ds-core:builtin"] == "registered"
    assert found[("--probe",)]["ds-core:builtin"] == "available"


def test_list_shows_what_is_wrong_with_the_environment_and_still_lists() -> None:
    done = ds("plugins", "list", DS_PLUGINS="nothing-like-it")
    assert done.returncode == 0
    assert "ds-core:builtin" in done.stdout
    assert "environment: DS_PLUGINS names 'nothing-like-it', which matches no installed plugin." in done.stdout


def test_why_shows_what_a_plugin_offers() -> None:
    done = ds("plugins", "why", "builtin", "--json")
    (record,) = json.loads(done.stdout)
    assert record["offers"]["ds_accelerators"] == ["reference"]
    assert "plugins" in record["offers"]["ds_commands"]
    assert [step["state"] for step in record["history"]][:2] == ["discovered", "registered"]


def test_why_of_an_unknown_name_has_a_nearest() -> None:
    done = ds("plugins", "why", "bultin")
    assert done.returncode == 2
    assert done.stderr.startswith("ds: error: no installed plugin is called 'bultin'. Did you mean 'builtin'?")


def test_doctor_says_nothing_is_wrong_or_what_is() -> None:
    well = ds("plugins", "doctor")
    assert (well.returncode, well.stdout.splitlines()[-1]) == (0, "nothing is wrong"), well.stdout
    told = json.loads(ds("plugins", "doctor", "--json", DS_PLUGINS_DISABLE="ds-core").stdout)
    assert told["faults"] == ["DS_PLUGINS_DISABLE names 'ds-core', which is ds-core itself and cannot be disabled."]
    assert told["switches"] == {"DS_PLUGINS_AUTOLOAD": "0", "DS_PLUGINS_DISABLE": "ds-core"}


def test_report_has_the_facts_of_a_bug_report() -> None:
    done = ds("report", "--json")
    rows = {(row["section"], row["name"]): row for row in json.loads(done.stdout)}
    assert rows["system", "python"]["value"].startswith(sys.version.split()[0])
    assert rows["torch", "torch"]["value"]
    assert "CPUs usable" in rows["system", "cpu"]["value"]
    assert "node 0: CPUs" in rows["system", "cores"]["value"]
    assert rows["accelerator ds-core:reference", "usable"]["status"] == "ok"
    assert rows["wheels", "ds-core:builtin"]["status"] == "ok"
    assert rows["environment", "DS_PLUGINS_AUTOLOAD"]["value"] == "0"


def test_ops_are_references_when_core_is_alone() -> None:
    done = ds("ops")
    header, *rows, summary = done.stdout.splitlines()
    assert header.split()[:2] == ["op", "cpu"]
    assert {row.split()[1] for row in rows} == {"reference"}
    assert summary.startswith(f"0 native, {len(rows)} reference")
    listed = json.loads(ds("ops", "--json").stdout)
    assert {(row["device_type"], row["reference"]) for row in listed} == {("any", True)}
