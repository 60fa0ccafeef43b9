"""Muon with AdamW for what is not a matrix."""

from __future__ import annotations

import pytest
import torch

from ds_core.errors import ModelError
from ds_core.optim.muon import Muon, MuonWithAuxAdam
from ds_core.optim.newton_schulz import best_dtype


def tensors() -> tuple[torch.nn.Parameter, torch.nn.Parameter, torch.nn.Parameter]:
    torch.manual_seed(0)
    matrix, embedding, bias = (torch.nn.Parameter(torch.randn(s)) for s in ((4, 6), (8, 4), (4,)))
    for tensor in (matrix, embedding, bias):
        tensor.grad = torch.randn_like(tensor)
    embedding.use_muon = False  # type: ignore[attr-defined]
    return matrix, embedding, bias


def test_each_half_equals_torchs_own_optimizer() -> None:
    matrix, embedding, bias = tensors()
    optimizer = MuonWithAuxAdam([matrix, embedding, bias], muon_lr=0.02, adam_lr=0.003, weight_decay=0.1)
    matrix_, embedding_, bias_ = tensors()
    muon = torch.optim.Muon([matrix_], lr=0.02, weight_decay=0.1)
    adam = torch.optim.AdamW([embedding_, bias_], lr=0.003, weight_decay=0.1)
    for _ in range(3):
        optimizer.step()
        muon.step()
        adam.step()
    if best_dtype(matrix.device) == torch.bfloat16:
        assert torch.equal(matrix, matrix_)
    else:  # torch's is in bfloat16 also where that has to be emulated
        torch.testing.assert_close(matrix, matrix_, rtol=0, atol=3 * 0.02 * 0.05)
    assert torch.equal(embedding, embedding_)
    assert torch.equal(bias, bias_)


@pytest.mark.parametrize("rule", [None, "original", "match_rms_adamw"])
def test_matrices_of_one_shape_move_as_torchs_do_one_by_one(rule: str | None) -> None:
    pairs = []
    for _ in range(2):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((12, 6), (6, 12), (12, 6), (5, 5))]
        for param in params:
            param.grad = torch.randn_like(param)
        pairs.append(params)
    ours = Muon(pairs[0], lr=0.02, adjust_lr_fn=rule)
    theirs = torch.optim.Muon(pairs[1], lr=0.02, adjust_lr_fn=rule)
    for _ in range(3):
        ours.step()
        theirs.step()
    for got, want in zip(*pairs, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=3 * 0.02 * 0.05)


def test_a_restored_optimizer_continues_as_the_undisturbed_one() -> None:
    ours, theirs = tensors(), tensors()
    undisturbed, first = MuonWithAuxAdam(ours, lr=0.01), MuonWithAuxAdam(theirs, lr=0.01)
    undisturbed.step()
    first.step()
    restored = MuonWithAuxAdam(theirs, lr=0.5)
    restored.load_state_dict(first.state_dict())
    undisturbed.step()
    restored.step()
    assert [g["lr"] for g in restored.param_groups] == [0.01, 0.01]
    assert all(map(torch.equal, ours, theirs))


def test_a_changed_group_rate_is_used_and_named_groups_keep_their_names() -> None:
    matrix, _, bias = tensors()
    optimizer = MuonWithAuxAdam([{"params": [("w", matrix), ("b", bias)], "lr": 0.1}])
    assert [(g["use_muon"], g["param_names"], g["lr"]) for g in optimizer.param_groups] == [
        (True, ["w"], 0.1),
        (False, ["b"], 0.1),
    ]
    before = [t.detach().clone() for t in (matrix, bias)]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert torch.equal(matrix, before[0])
    assert torch.equal(bias, before[1])


def test_a_group_decides_for_all_its_tensors() -> None:
    matrix, _, bias = tensors()
    optimizer = MuonWithAuxAdam([{"params": [matrix, bias], "use_muon": False}])
    assert [g["use_muon"] for g in optimizer.param_groups] == [False]
    with pytest.raises(ModelError, match=r"shape \(4,\) has use_muon set"):
        MuonWithAuxAdam([{"params": [bias], "use_muon": True}])
