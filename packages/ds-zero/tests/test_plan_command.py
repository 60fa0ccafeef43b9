"""The command `ds plan`, and the rules of thumb that users of DeepSpeed know."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from torch import nn

from ds_core.cli import main
from ds_core.errors import ConfigError
from ds_zero.estimate import estimate
from ds_zero.estimate.formulas import (
    GIB,
    estimate_zero2_model_states_mem_needs,
    estimate_zero2_model_states_mem_needs_all_cold,
    estimate_zero2_model_states_mem_needs_all_live,
    estimate_zero3_model_states_mem_needs,
    estimate_zero3_model_states_mem_needs_all_cold,
    estimate_zero3_model_states_mem_needs_all_live,
)
from ds_zero.estimate.models import model_of

WIDTH = 22
STEPS = 4
SETTLED = 2


def config_of(stage: int) -> dict:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "zero_optimization": {"stage": stage, "param_persistence_threshold": 100},
        "bf16": {"enabled": True},
    }


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(1)))
    return str(path)


def test_the_command_says_what_estimate_says(config, capsys):
    sizes = "gpt:layers=2,dim=64,vocab=101,heads=4"
    assert main(["plan", config, "--model", sizes, "--world", "4", "--json", "--units", "--activations", "1e6"]) == 0
    told = json.loads(capsys.readouterr().out)
    plan = estimate(model_of(sizes), config, 4, activation_bytes=10**6)
    assert [row["bytes"] for row in told["held"]] == [row.bytes for row in plan.held]
    assert told["totals"] == {
        "held_bytes": plan.bytes_of(),
        "device_peak_bytes": plan.peak_bytes,
        "sent_bytes": plan.sent_bytes,
    }
    assert [other["what"] for other in told["others"]] == ["stage 0", "stage 2", "stage 3"]
    assert sum(unit["numel"] for unit in told["units"]) == plan.numel


def test_the_table_names_every_kind_and_the_other_stages(config, capsys):
    assert main(["plan", config, "--model", "params:1e6,largest=1e5", "--world", "2", "--units"]) == 0
    text = capsys.readouterr().out
    for word in (
        "master weights",
        "optimizer states",
        "reduce_scatter",
        "stage 3",
        "not counted: activations",
        "parts.3",
    ):
        assert word in text


def test_a_job_that_does_not_fit_is_told_the_next_stage_that_does(config, capsys):
    sizes = ["--model", "params:1e6,largest=1e5", "--world", "8"]
    peaks = {}
    for stage in (1, 2, 3):
        peaks[stage] = estimate(model_of(sizes[1]), config_of(stage), 8).peak_bytes
    main(["plan", config, *sizes, "--device-memory", str(peaks[1])])
    assert "fits: " in capsys.readouterr().out
    for stage in (2, 3):
        main(["plan", config, *sizes, "--json", "--device-memory", str(peaks[stage])])
        told = json.loads(capsys.readouterr().out)
        assert not told["fits"]
        assert told["change"]["what"] == f"zero_optimization.stage {stage}"
        assert told["change"]["totals"]["device_peak_bytes"] == peaks[stage]


def test_a_callable_is_built_without_values(config, tmp_path, capsys, monkeypatch):
    (tmp_path / "planned_net.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Linear(10**6, 10**6)\n\n"
        "def reads():\n    return float(torch.ones(1))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["plan", config, "--model", "planned_net:build", "--world", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["numel"] == 10**12 + 10**6
    assert main(["plan", config, "--model", "planned_net:reads", "--world", "2"]) == 2
    assert "planned_net:reads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nonsense", "--world", "2"], "--model must be"),
        (["--model", "gpt:layers=2", "--world", "2"], "must also give dim, vocab, heads"),
        (["--model", "gpt:layer=2", "--world", "2"], "layers"),
        (["--model", "gpt:layers=2,dim=10,vocab=3,heads=4", "--world", "2"], "dim 10 must divide by heads 4"),
        (["--model", "params:x", "--world", "2"], "--model params:"),
        (["--model", "params:1e9,largest=2e9", "--world", "2"], "largest must be"),
        (["--model", "params:1e12,largest=1", "--world", "2"], "raise largest"),
        (["--model", "no_such_module_here:f", "--world", "2"], "cannot be imported"),
        (["--model", "json:no_such_name", "--world", "2"], "no 'no_such_name'"),
        (["--model", "missing.json", "--world", "2"], "missing.json"),
        (["--model", "params:1e6", "--world", "2", "--activations", "many"], "--activations"),
        (["--model", "params:1e6", "--world", "2", "--device-memory", "-3"], "--device-memory"),
    ],
)
def test_wrong_arguments_are_named(config, capsys, arguments, words):
    assert main(["plan", config, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_hugging_face_config_is_planned_where_transformers_is_installed(config, tmp_path, capsys):
    path = tmp_path / "model.json"
    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    path.write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes}))
    code = subprocess.run([sys.executable, "-c", "import transformers"], capture_output=True, check=False).returncode
    assert main(["plan", config, "--model", str(path), "--world", "2", "--json"]) == (0 if code == 0 else 2)
    told = capsys.readouterr()
    if code:
        assert "pip install transformers" in told.err
    else:
        dim = sizes["n_embd"]
        block = 12 * dim * dim + 13 * dim
        assert json.loads(told.out)["numel"] == (64 + 32) * dim + 2 * block + 2 * dim


def test_help_lists_the_command_without_torch():
    code = (
        "import sys; from ds_core.cli import main; main(['--help']); "
        "sys.exit(' '.join({'torch', 'typer', 'pydantic'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.strip() == ""
    assert "\n  plan " in run.stdout


# --- DeepSpeed's rules of thumb ---------------------------------------------------------------------------------------


def test_rules_of_thumb_give_the_figures_of_the_documentation():
    # DeepSpeed documentation, "Memory Requirements": 2851 M parameters, largest layer 32 M, one node of 8.
    two = [estimate_zero2_model_states_mem_needs(2851e6, 8, 1, offload) for offload in (True, False)]
    assert [(f"{n.cpu_bytes / GIB:.2f}", f"{n.gpu_bytes / GIB:.2f}") for n in two] == [
        ("127.45", "5.31"),
        ("127.45", "15.93"),
    ]
    cases = [(True, True), (True, False), (False, False)]
    three = [
        estimate_zero3_model_states_mem_needs(2851e6, 32e6, 8, 1, offload, params, init)
        for offload, params in cases
        for init in (True, False)
    ]
    assert [f"{n.cpu_bytes / GIB:.2f}" for n in three] == ["71.69", "127.45", "63.72", "127.45", "1.43", "127.45"]
    assert [f"{n.gpu_bytes / GIB:.2f}" for n in three] == ["0.12", "0.12", "0.78", "0.78", "6.09", "6.09"]


def test_live_tables_count_the_model():
    model = nn.Sequential(nn.Embedding(53, 22), nn.Linear(22, 22), nn.Linear(22, 53, bias=False))
    model[2].weight = model[0].weight
    total = sum(p.numel() for p in model.parameters())
    live = estimate_zero2_model_states_mem_needs_all_live(model, 4, 2)
    assert live == estimate_zero2_model_states_mem_needs_all_cold(total, 4, 2)
    largest = max(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    live = estimate_zero3_model_states_mem_needs_all_live(model, 4, 2)
    assert live == estimate_zero3_model_states_mem_needs_all_cold(total, largest, 4, 2)


def test_rules_of_thumb_refuse_what_they_do_not_cover():
    with pytest.raises(ConfigError, match="cpu_offload_params"):
        estimate_zero3_model_states_mem_needs(1e9, 1e6, cpu_offload=False)
    with pytest.raises(ConfigError, match="num_nodes"):
        estimate_zero2_model_states_mem_needs(1e9, num_nodes=0)
