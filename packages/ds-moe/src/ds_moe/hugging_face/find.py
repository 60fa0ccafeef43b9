"""Finds the mixture-of-experts blocks of a model, and says what it saw where there is none. Changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ds_moe.errors import ConversionError
from ds_moe.hugging_face.form import StackedForm, form_of
from ds_moe.hugging_face.presets import PRESETS, family_of

if TYPE_CHECKING:
    from ds_moe.config import ExpertParallel

__all__ = ["Block", "find_blocks"]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A block with experts.

    Args:
        name: of the block in the model.
        module: the block.
        experts_name: name of the experts in the block.
        experts: the module with stacked tensors, or the list of experts.
        form: how stacked experts compute; None for a list.
        router: the module that chooses experts, or None where none has the name of one.
    """

    name: str
    module: nn.Module
    experts_name: str
    experts: nn.Module
    form: StackedForm | None
    router: nn.Module | None

    @property
    def count(self) -> int:
        """How many experts it has."""
        return self.form.experts if self.form is not None else len(self.experts)  # type: ignore[arg-type]

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.name or '(root)'} ({type(self.module).__name__})"


def find_blocks(model: nn.Module, section: ExpertParallel) -> list[Block]:
    """The blocks to convert, in the model's order; at least one.

    Raises:
        ConversionError: there is none, or a setting does not fit what there is.
    """
    found: list[Block] = []
    refused: list[str] = []
    for name, module in model.named_modules():
        if section.moe_layer_pattern is not None and not re.search(section.moe_layer_pattern, name):
            continue
        for child_name, child in module.named_children():
            if not re.fullmatch(section.expert_pattern, child_name):
                continue
            form = form_of(child)
            is_list = isinstance(child, nn.ModuleList) and len(child) > 1
            router = _child(module, section.router_pattern)
            if isinstance(form, StackedForm):
                found.append(Block(name, module, child_name, child, form, router))
            elif is_list and section.moe_layer_pattern is not None:
                found.append(Block(name, module, child_name, child, None, router))
            elif isinstance(form, str):
                refused.append(f"{name}.{child_name} ({type(child).__name__}): {form}")
            elif is_list:
                refused.append(
                    f"{name}.{child_name} is a list of {len(child)} experts: set expert_parallel.moe_layer_pattern to "
                    "a regular expression for the name of its block"
                )
    chosen = _of_preset(found, model, section)
    if not chosen:
        raise ConversionError(_nothing(model, section, refused))
    for block in chosen:
        _check(block, model, section)
    return chosen


def _child(block: nn.Module, pattern: str) -> nn.Module | None:
    return next((child for name, child in block.named_children() if re.fullmatch(pattern, name)), None)


def _of_preset(found: list[Block], model: nn.Module, section: ExpertParallel) -> list[Block]:
    if section.preset_model is None:
        return found
    families = PRESETS[section.preset_model]
    chosen = [block for block in found if family_of(block.module, model) in families]
    if found and not chosen:
        seen = ", ".join(sorted({family_of(block.module, model) or type(model).__name__ for block in found}))
        raise ConversionError(
            f"expert_parallel.preset_model is {section.preset_model!r}, but the mixture-of-experts blocks of "
            f"{type(model).__name__} are of family {seen}; name its preset ({', '.join(PRESETS)}), or take "
            "preset_model out: blocks are found by their form"
        )
    return chosen


def _nothing(model: nn.Module, section: ExpertParallel, refused: list[str]) -> str:
    text = (
        f"expert_parallel.enabled is true, but {type(model).__name__} has no mixture-of-experts block that can be "
        f"converted: looked for a module whose child named {section.expert_pattern!r} has 3-dimensional gate_up_proj "
        "(or up_proj) and down_proj, as in transformers 5"
    )
    if section.moe_layer_pattern is not None:
        text += (
            f", or is a list of modules, in modules whose name matches moe_layer_pattern {section.moe_layer_pattern!r}"
        )
    else:
        text += "; a model of your own needs expert_parallel.moe_layer_pattern"
    if refused:
        shown = "; ".join(refused[:3]) + (f"; and {len(refused) - 3} more" if len(refused) > 3 else "")
        return f"{text}. Not converted: {shown}"
    return f"{text}. Disable expert_parallel for a model without experts"


def _check(block: Block, model: nn.Module, section: ExpertParallel) -> None:
    if block.count % section.autoep_size:
        divisors = ", ".join(str(size) for size in _divisors(block.count))
        raise ConversionError(
            f"expert_parallel.autoep_size must divide the number of experts, got {section.autoep_size} for "
            f"{block.count} experts in {block.title}; choose one of {divisors}"
        )
    if section.num_experts_attr is not None:
        stated = _stated(model, section.num_experts_attr)
        if stated != block.count:
            raise ConversionError(
                f"expert_parallel.num_experts_attr {section.num_experts_attr!r} says {stated} experts, but "
                f"{block.title} has {block.count}; name the attribute with that number, or take it out"
            )


def _stated(model: nn.Module, attribute: str) -> Any:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, attribute):
        known = sorted(name for name in vars(config) if "expert" in name) if config is not None else []
        raise ConversionError(
            f"expert_parallel.num_experts_attr is {attribute!r}, which {type(model).__name__}.config does not have; "
            f"its attributes with experts are {', '.join(known) or 'none'}"
        )
    return getattr(config, attribute)


def _divisors(number: int) -> Iterator[int]:
    return (size for size in range(1, number + 1) if number % size == 0)
