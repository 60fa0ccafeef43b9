"""Checkpoints that DeepSpeed wrote are consolidated, listed and imported like our own; see `golden/deepspeed`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ds_core.checkpoint import get_fp32_state_dict_from_zero_checkpoint, open_source
from ds_core.checkpoint.manage.compare import compare
from ds_core.cli import main

GOLDEN = Path(__file__).parent / "golden" / "deepspeed"
CASES = ("z1-fp32", "z2-bf16", "z2-bf16-universal", "z3-fp32", "z3-fp32-universal")


def exact(case: str) -> dict[str, torch.Tensor]:
    """What DeepSpeed says the fp32 weights are, under the first name of each."""
    told = load_file(GOLDEN / case.removesuffix("-universal") / "expected.safetensors")
    weights = {key.removeprefix("model/"): value for key, value in told.items() if key.startswith("model/")}
    finer = {
        name: told.get(f"optimizer/master/{name}") for name, value in weights.items() if value.dtype != torch.float32
    }
    return {name: value.float() if finer.get(name) is None else finer[name] for name, value in weights.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_fp32_state_dict_is_what_deepspeed_says(case):
    wanted = exact(case)
    found = get_fp32_state_dict_from_zero_checkpoint(GOLDEN / case)
    assert set(found) == {*wanted, "head.weight", "scale"}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert found["head.weight"] is found["embed.weight"]
    trained = get_fp32_state_dict_from_zero_checkpoint(GOLDEN / case, exclude_frozen_parameters=True)
    assert set(found) - set(trained) == {"frozen.weight", "frozen.bias"}


@pytest.mark.parametrize("case", CASES)
def test_the_commands_take_it(case, tmp_path, capsys):
    assert main(["checkpoint", "ls", str(GOLDEN / case)]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    kind = "deepspeed-universal" if case.endswith("universal") else "deepspeed"
    assert (row[0][:12], row[1], row[-2:]) == ("global_step3", "latest", [kind, "complete"])
    assert main(["checkpoint", "verify", str(GOLDEN / case)]) == 0
    assert main(["checkpoint", "import", str(GOLDEN / case), str(tmp_path / "ours")]) == 0
    assert main(["checkpoint", "verify", str(tmp_path / "ours")]) == 0
    imported = compare(open_source(GOLDEN / case), open_source(tmp_path / "ours"))
    assert [(one.key, one.right) for one in imported.tensors] == [("model/head.weight", None)]
    assert not imported.values
    assert main(["checkpoint", "export", str(tmp_path / "ours"), str(tmp_path / "out")]) == 0
    written, wanted = load_file(tmp_path / "out" / "model.safetensors"), exact(case)
    assert set(written) == {*wanted, "scale"}
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)
