"""Marking modules that are fetched whole."""

from __future__ import annotations

import gc
import weakref

import pytest
from torch import nn

from ds_core.errors import ConfigError
from ds_zero import leaf


class Expert(nn.Linear):
    pass


class Moe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(2, 2)
        self.experts = nn.ModuleList(Expert(2, 2) for _ in range(2))


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 2), Moe(), Moe())


@pytest.mark.parametrize("entry", [Moe, "Moe", f"{Moe.__module__}.Moe"], ids=["class", "name", "qualified name"])
def test_modules_of_a_class_are_marked(model, entry):
    found = leaf.set_z3_leaf_modules(model, [entry])
    assert found == [model[1], model[2]] == leaf.get_z3_leaf_modules(model)
    assert [leaf.z3_leaf_module(module) for module in model] == [False, True, True]


def test_a_class_matches_its_subclasses_and_a_name_does_not(model):
    by_name = leaf.set_z3_leaf_modules(model, ["Linear"])
    assert by_name == [model[0], model[1].gate, model[2].gate]
    assert len(leaf.set_z3_leaf_modules(model, [nn.Linear])) == 7


def test_a_class_that_is_not_there_is_an_error_unless_allowed(model):
    with pytest.raises(ConfigError, match=r"'Mo' matches no module of Sequential\. Did you mean 'Moe'"):
        leaf.set_z3_leaf_modules(model, ["Moe", "Mo"])
    assert leaf.get_z3_leaf_modules(model) == []
    assert leaf.set_z3_leaf_modules(model, [nn.Conv2d], raise_if_not_found=False) == []


@pytest.mark.parametrize("entry", [3, int])
def test_something_else_than_a_class_is_an_error(model, entry):
    with pytest.raises(ConfigError, match="takes module classes"):
        leaf.set_z3_leaf_modules(model, [entry])


@pytest.mark.parametrize("entry", ["Moe", Moe])
def test_one_class_outside_a_list_is_an_error(model, entry):
    with pytest.raises(ConfigError, match="take a list"):
        leaf.set_z3_leaf_modules(model, entry)


def test_marks_are_taken_off(model):
    leaf.set_z3_leaf_modules(model, [Moe, Expert])
    assert leaf.unset_z3_leaf_modules(model, [Expert]) == [*model[1].experts, *model[2].experts]
    assert leaf.get_z3_leaf_modules(model) == [model[1], model[2]]


def test_one_module_is_marked_and_unmarked(model):
    leaf.set_z3_leaf_module(model[2], True)
    assert leaf.get_z3_leaf_modules(model) == [model[2]]
    leaf.set_z3_leaf_module(model[2], False)
    assert leaf.get_z3_leaf_modules(model) == []


def test_modules_are_marked_by_name(model):
    assert leaf.set_z3_leaf_modules_by_name(model, ["1.experts.0", "2"]) == [model[1].experts[0], model[2]]
    assert leaf.set_z3_leaf_modules_by_name(model, ["2"], flag=False) == [model[2]]
    assert leaf.get_z3_leaf_modules(model) == [model[1].experts[0]]


def test_modules_are_marked_by_the_end_of_their_name(model):
    assert leaf.set_z3_leaf_modules_by_suffix(model, ["experts.0"]) == [model[1].experts[0], model[2].experts[0]]
    assert leaf.set_z3_leaf_modules_by_suffix(model, ["ate"], raise_if_not_found=False) == []


@pytest.mark.parametrize("setter", [leaf.set_z3_leaf_modules_by_name, leaf.set_z3_leaf_modules_by_suffix])
def test_a_name_that_is_not_there_is_an_error_unless_allowed(model, setter):
    with pytest.raises(ConfigError, match="matches no module of Sequential"):
        setter(model, ["9"])
    assert setter(model, ["9"], raise_if_not_found=False) == []


def test_parameters_anywhere_inside_a_leaf_are_its_own(model):
    leaf.set_z3_leaf_modules(model, [Moe])
    assert leaf.z3_leaf_parameter(model[1].experts[1].bias)
    assert not leaf.z3_leaf_parameter(model[0].bias)


def test_a_mark_does_not_keep_a_module_alive(model):
    leaf.set_z3_leaf_module(model[1], True)
    alive = weakref.ref(model[1])
    del model[1]
    gc.collect()
    assert alive() is None
