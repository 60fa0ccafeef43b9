"""Files of torch.save read without torch's unpickler: the same values as torch.load gives, any range of them."""

from __future__ import annotations

import argparse
import collections
import enum
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ds_core.checkpoint.foreign.pieces import Piece
from ds_core.checkpoint.foreign.plain import plain
from ds_core.checkpoint.foreign.positional import deal
from ds_core.checkpoint.foreign.records import Record
from ds_core.checkpoint.foreign.stored import StoredTensor
from ds_core.checkpoint.foreign.torch_file import read_torch_file
from ds_core.checkpoint.foreign.window import Window
from ds_core.errors import CheckpointError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.int32]
DTYPES += [torch.int16, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.uint16]
FORMATS = [True, False]


def saved(path: Path, value: Any, is_zip: bool) -> Any:
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    return read_torch_file(path)


@pytest.mark.parametrize("is_zip", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_to_the_bit(tmp_path, dtype, is_zip):
    value = torch.arange(-6, 6).view(3, 4).to(torch.float32).to(dtype)
    found = saved(tmp_path / "a.pt", {"x": value}, is_zip)["x"]
    assert (found.dtype, found.shape) == (dtype, (3, 4))
    assert torch.equal(found.full().view(torch.uint8), value.view(torch.uint8))


VIEWS = {
    "transposed": lambda x: x.transpose(0, 2),
    "a slice": lambda x: x[1:, :, ::2],
    "a row": lambda x: x[2, 1],
    "one element": lambda x: x[1, 2, 3],
    "nothing": lambda x: x[:, :0],
    "a parameter": lambda x: nn.Parameter(x.permute(1, 0, 2)),
    "an expanded one": lambda x: x[:1, :1].expand(1, 1, 7),
}


@pytest.mark.parametrize("is_zip", FORMATS)
@pytest.mark.parametrize("view", VIEWS)
def test_views_are_read_through_their_strides(tmp_path, view, is_zip):
    value = VIEWS[view](torch.randn(4, 5, 7))
    found = saved(tmp_path / "a.pt", [value], is_zip)[0]
    assert torch.equal(found.full(), value.detach())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_range_of_any_view(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    value = torch.arange(float(torch.Size(shape).numel())).view(shape)
    value = value.permute(data.draw(st.permutations(range(len(shape)))))
    start = data.draw(st.integers(0, value.numel()))
    stop = data.draw(st.integers(start, value.numel()))
    found = saved(tmp_path_factory.mktemp("view") / "a.pt", value, True)
    out = torch.empty(stop - start, dtype=torch.float64)
    found.read(out, start)
    assert torch.equal(out, value.reshape(-1)[start:stop].double())


def test_a_read_takes_only_its_bytes(tmp_path, monkeypatch):
    found = saved(tmp_path / "a.pt", torch.arange(1000.0), True)
    taken: list[int] = []
    whole = Window.read_into
    monkeypatch.setattr(Window, "read_into", lambda w, view, at=0: (taken.append(len(view)), whole(w, view, at)))
    out = torch.empty(7)
    found.read(out, 500)
    assert (out.tolist(), taken) == ([500, 501, 502, 503, 504, 505, 506], [28])
    with pytest.raises(CheckpointError, match=r"elements 998 to 1005 of a tensor of 1000"):
        found.read(out, 998)


PLAIN = {
    "scalars": [None, True, False, 0, -1, 1 << 70, 1.5, float("inf"), 1 + 2j, "é", b"\x00\xff"],
    "containers": {"l": [1, [2]], "t": (1, (2,)), "d": {1: {None: "x"}}, "s": {1, "a"}, "f": frozenset((1,))},
    "torch": {"size": torch.Size([2, 3]), "dtype": torch.bfloat16},
    "ordered": collections.OrderedDict(a=1, b=2),
    "default": collections.defaultdict(list, {"a": [1]}),
}


@pytest.mark.parametrize("is_zip", FORMATS)
@pytest.mark.parametrize("what", PLAIN)
def test_plain_values_are_what_they_were(tmp_path, what, is_zip):
    found = saved(tmp_path / "a.pt", PLAIN[what], is_zip)
    assert found == PLAIN[what]
    assert type(found) in (list, dict)


def test_state_dicts_of_modules_and_optimizers(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    found = saved(tmp_path / "a.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, True)
    assert {name: value.full().tolist() for name, value in found["model"].items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }
    assert found["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"].full(), optimizer.state_dict()["state"][0]["exp_avg"])


def test_numpy_scalars_become_numbers(tmp_path):
    numpy = pytest.importorskip("numpy")
    values = [numpy.float32(1.5), numpy.float64(-2.25), numpy.int64(-7), numpy.bool_(True), numpy.uint8(200)]
    assert saved(tmp_path / "a.pt", values, True) == [1.5, -2.25, -7, True, 200]


def test_objects_of_allowed_names_become_records(tmp_path, monkeypatch):
    module = types.ModuleType("deepspeed.fake")
    scaler = type("Scaler", (), {"__module__": "deepspeed.fake"})
    stage = enum.Enum("Stage", {"two": 2}, module="deepspeed.fake")
    vars(module).update(Scaler=scaler, Stage=stage)
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.fake", module)
    made = scaler()
    made.cur_scale = 8
    torch.save([made, stage.two, argparse.Namespace(lr=0.1)], tmp_path / "a.pt")
    monkeypatch.undo()
    one, two, three = read_torch_file(tmp_path / "a.pt")
    assert all(type(item) is Record for item in (one, two, three))
    assert (one.name, one.attributes) == ("deepspeed.fake.Scaler", {"cur_scale": 8})
    assert (two.name, two.args) == ("deepspeed.fake.Stage", (2,))
    assert three.get("lr") == 0.1


def test_tied_tensors_share_their_storage(tmp_path):
    weight = torch.randn(3, 3)
    first, second = saved(tmp_path / "a.pt", (weight, weight.t()), True)
    assert first.storage == second.storage


def test_plain_keeps_what_json_can_and_names_the_rest(tmp_path):
    value = {"a": (1, 2), "b": {3: 4}, "c": {5}, "d": torch.ones(2), "e": torch.tensor(2.5), "f": [{6}, 7]}
    left_out: list[str] = []
    found = plain(saved(tmp_path / "a.pt", value, True), "x", left_out)
    assert found == {"a": [1, 2], "b": {}, "e": 2.5, "f": [None, 7]}
    assert left_out == ["x['b'][3]", "x['c'] (set)", "x['d'] (Tensor)", "x['f'][0] (set)"]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_range_of_a_tensor_in_boxes(tmp_path_factory, data):
    """A tensor cut into boxes along two dimensions: every flat range is read from those it meets, each once."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    cuts = [sorted({0, size, data.draw(st.integers(0, size))}) for size in shape]
    boxes = torch.cartesian_prod(*[torch.arange(len(cut) - 1) for cut in cuts]).view(-1, len(shape)).tolist()
    pieces = []
    folder = tmp_path_factory.mktemp("boxes")
    for index, box in enumerate(boxes):
        offset = tuple(cut[i] for cut, i in zip(cuts, box, strict=True))
        size = tuple(cut[i + 1] - cut[i] for cut, i in zip(cuts, box, strict=True))
        part = whole[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))].clone()
        stored = saved(folder / f"{index}.pt", part, True)
        assert isinstance(stored, StoredTensor)
        pieces.append(Piece(shape, offset, size, stored))
    start = data.draw(st.integers(0, whole.numel()))
    stop = data.draw(st.integers(start, whole.numel()))
    out = torch.full((stop - start,), -1.0)
    assert sum(piece.read(out, start) for piece in pieces) == stop - start
    assert torch.equal(out, whole.reshape(-1)[start:stop])


def test_numbers_are_dealt_to_names_only_where_one_way_is_left():
    model = [("a", (2, 3)), ("b", (3,)), ("frozen", (4,)), ("c", (3, 2)), ("d", (2,))]
    assert deal([[(2, 3), (3, 2)], [(3,), (2,)]], model) == [["a", "c"], ["b", "d"]]
    assert deal([[(2, 3), (3,), (4,), (3, 2), (2,)]], model) == [["a", "b", "frozen", "c", "d"]]
    assert deal([[(3,)]], [("a", (3,)), ("b", (3,))]) is None, "either could be the frozen one"
    assert deal([[(9,)]], model) is None
