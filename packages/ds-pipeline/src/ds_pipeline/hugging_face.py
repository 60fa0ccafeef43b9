"""Divides a causal language model of transformers into stages, from the config alone, and runs its own code for each.

Note [How a stage runs]
    A stage calls the model's own forward, so masks, positions and rotary embeddings are made as the model makes them.
    The list of layers it runs over has this stage's layers in their places, and stand-ins elsewhere: the one before
    the stage's first layer gives what the stage before sent, the one after its last layer leaves the forward with what
    it is given. Layers that are recomputed together run when the last of them is called. What came with the tokens
    (masks, positions) is sent along, so that middle stages need no data.

Note [Names]
    Parameters keep the names they have in the model: what is not on this rank is replaced by stand-ins without
    parameters. A weight that two stages use (embedding and head) is on both, under its first name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ds_core.placeholder import assign, is_placeholder
from ds_pipeline.anatomy import Anatomy, examine
from ds_pipeline.errors import PartitionError, PipelineError
from ds_pipeline.measure_model import Sample, measure_model
from ds_pipeline.partition import LayerCost, PartitionPlan, plan_partition
from ds_pipeline.stage import Stages
from ds_pipeline.stand_ins import HIDDEN, Absent, AbsentLayer, Leave, Recomputed

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_pipeline.config import PipelineConfig

__all__ = ["HuggingFaceStages", "cut", "plan_of", "ranks_of_parameters"]

TOKENS = ("input_ids", "inputs_embeds")


def cut(model: nn.Module, build: Build, section: PipelineConfig, rank_of_stage: tuple[int, ...]) -> HuggingFaceStages:
    """This rank's stages of `model`; the other layers' memory is free. Called on all ranks.

    Raises:
        ModelError: it is not understood.
        PartitionError: its layers cannot be divided as asked.
    """
    anatomy = examine(model)
    costs = _costs(model, anatomy)
    if section.partition in ("profile", "best") and section.sample_length is not None:
        sample = Sample(build.config.batch.micro_batch_size, section.sample_length)
        costs = measure_model(model, anatomy, costs, sample, build.device, on_all_ranks=bool(build.holdings))
    elif section.partition == "profile":
        raise PartitionError(
            "pipeline.partition 'profile' needs pipeline.sample_length, the tokens of a row to measure the layers of "
            f"{type(model).__name__} with; set it, or choose 'parameters'"
        )
    plan = plan_partition(costs, len(rank_of_stage), section.partition)
    stages = Stages(rank_of_stage, build.mesh.rank("pipe"))
    staged = HuggingFaceStages(model, anatomy, plan, stages, build.full)
    staged.dynamic_shape = section.dynamic_shape
    staged.set_checkpoint_interval(section.activation_checkpoint_interval)
    return staged


def _costs(model: nn.Module, anatomy: Anatomy) -> list[LayerCost]:
    """The layers; what runs before counts with the first, what runs after with the last."""
    layers = model.get_submodule(anatomy.layers)
    numels = [sum(p.numel() for p in layer.parameters()) for layer in layers.children()]
    for at, paths in ((0, anatomy.before), (-1, anatomy.after)):
        owned = {id(p): p.numel() for path in paths for p in model.get_submodule(path).parameters(recurse=False)}
        numels[at] += sum(owned.values())
    titles = [type(layer).__name__ for layer in layers.children()]
    return [LayerCost(title, numel) for title, numel in zip(titles, numels, strict=True)]


def plan_of(model: nn.Module, rank_of_stage: tuple[int, ...], partition: Any) -> tuple[Anatomy, PartitionPlan]:
    """The parts of `model`, which may have no values, and its stages as far as they are known without measuring.

    Raises:
        ModelError: it is not understood.
        PartitionError: its layers cannot be divided as asked; or they would be measured.
    """
    if partition == "profile":
        raise PartitionError(
            "pipeline.partition 'profile' measures layers in a run, so what a stage has is not known before; set "
            "pipeline.partition to the boundaries that a run printed, such as [0, 3, 6]"
        )
    anatomy = examine(model)
    return anatomy, plan_partition(_costs(model, anatomy), len(rank_of_stage), partition)


def ranks_of_parameters(
    model: nn.Module, anatomy: Anatomy, plan: PartitionPlan, rank_of_stage: tuple[int, ...]
) -> dict[int, set[int]]:
    """Pipe ranks that use each parameter, by id."""
    found: dict[int, set[int]] = {}

    def note(module: nn.Module, stage: int, recurse: bool) -> None:
        for parameter in module.parameters(recurse=recurse):
            found.setdefault(id(parameter), set()).add(rank_of_stage[stage])

    for paths, stage in ((anatomy.before, 0), (anatomy.after, len(rank_of_stage) - 1)):
        for path in paths:
            note(model.get_submodule(path), stage, False)
    for index, layer in enumerate(model.get_submodule(anatomy.layers).children()):
        note(layer, plan.stage_of(index), True)
    return found


class HuggingFaceStages(nn.Module):
    """The model with this rank's stages in it. Names are the model's, and so are attributes it does not have itself.

    Args:
        model: cut in place.
        anatomy: its parts.
        plan: layers of each stage.
        stages: which are here.
        full: the value of a parameter that was constructed in pieces; called on all ranks in one order.
    """

    def __init__(
        self,
        model: nn.Module,
        anatomy: Anatomy,
        plan: PartitionPlan,
        stages: Stages,
        full: Callable[[nn.Parameter], torch.Tensor],
    ) -> None:
        super().__init__()
        self.__dict__["_whole"] = model
        self._modules = model._modules
        self._parameters = model._parameters
        self._buffers = model._buffers
        self.training = model.training
        self.plan: PartitionPlan = plan
        self.stages: Stages = stages
        self.dynamic_shape: bool = False
        self._anatomy: Anatomy = anatomy
        self._interval: int = 0
        self._ties: dict[str, tuple[int, ...]] = {}
        """Pipe ranks of parameters that several have, by name."""
        above, _, self._list_name = anatomy.layers.rpartition(".")
        self.__dict__["_base"] = model.get_submodule(above)
        self._drop(full)
        self._views: dict[int, nn.ModuleList] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "_whole":
                raise
            return getattr(self.__dict__["_whole"], name)

    def train(self, mode: bool = True) -> HuggingFaceStages:
        """See `torch.nn.Module.train`."""
        super().train(mode)
        self._whole.training = mode
        return self

    # ---- running ----

    def split_batch(self, batch: Any) -> tuple[Any, Any]:
        """What came with the tokens, and the labels; see `Staged`.

        Raises:
            PipelineError: the batch is no mapping with input_ids.
        """
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            raise PipelineError(
                f"a batch of {type(self._whole).__name__} is a mapping with input_ids and labels, got "
                f"{type(batch).__name__}; engine.set_batch_fn(fn) takes a function that makes one"
            )
        inputs = {name: value for name, value in batch.items() if value is not None}
        return inputs, inputs.pop("labels", None)

    def forward(self, inputs: Any, *, stage: int | None = None, targets: Any = None, with_loss: bool = False) -> Any:
        """One stage; see Note [How a stage runs].

        Raises:
            PipelineError: no stage was named, or there are no labels to compute a loss from.
        """
        if stage is None:
            raise PipelineError("this rank has some layers of the model only; call engine.train_batch or eval_batch")
        if with_loss and targets is None:
            raise PipelineError("the batch has no labels to compute a loss from; add labels, or compute_loss=False")
        along = {name: value for name, value in inputs.items() if name != HIDDEN and name not in TOKENS}
        given: dict[str, Any] = {"use_cache": False, **along}
        given.update({name: inputs[name] for name in TOKENS if name in inputs} if stage == 0 else {})
        if stage:
            given["inputs_embeds"] = inputs[HIDDEN]
        if with_loss:
            given["labels"] = targets
        output = self._run(stage, inputs.get(HIDDEN), given)
        if isinstance(output, torch.Tensor):
            return {HIDDEN: output, **along}
        return (output.loss, output.logits) if with_loss else output.logits

    def _run(self, stage: int, entering: torch.Tensor | None, given: dict[str, Any]) -> Any:
        """The activation, or what the whole model gives in the last stage."""
        view = self._view(stage)
        first = self.plan.span(stage)[0]
        door: Any = view[first - 1] if first else None
        layers = self._base._modules[self._list_name]
        self._base._modules[self._list_name] = view
        if door is not None:
            door.entering = entering
        try:
            return self._whole(**given)
        except Leave as left:
            return left.hidden
        finally:
            self._base._modules[self._list_name] = layers
            if door is not None:
                door.entering = None

    def _view(self, stage: int) -> nn.ModuleList:
        """The list of layers as this stage runs over it."""
        if stage not in self._views:
            start, stop = self.plan.span(stage)
            found: list[nn.Module] = []
            group: list[Recomputed] = []
            for index, layer in enumerate(self._base._modules[self._list_name]):
                if start <= index < stop:
                    if self._interval and (index - start) % self._interval == 0:
                        group = []
                    found.append(Recomputed(layer, group, self._anatomy.returns) if self._interval else layer)
                else:
                    absent = AbsentLayer(layer, self._anatomy.returns)
                    absent.is_exit = index == stop
                    found.append(absent)
            self._views[stage] = nn.ModuleList(found)
        return self._views[stage]

    @property
    def recomputes(self) -> bool:
        """Whether backward runs layers again."""
        return self._interval > 0 or bool(getattr(self._whole, "is_gradient_checkpointing", False))

    def set_checkpoint_interval(self, interval: int) -> None:
        """So many layers run again in backward together, counted from the first of a stage; 0: none does."""
        self._interval = interval
        self._views = {}

    @property
    def partition_plan(self) -> str:
        """A table of the stages."""
        return str(self.plan)

    # ---- what is here ----

    def tied_ranks(self) -> dict[str, list[int]]:
        """Pipe ranks of each parameter that several have, by name; the same on all ranks."""
        return {name: list(ranks) for name, ranks in self._ties.items()}

    def tied_parameters(self, key: str) -> list[nn.Parameter]:
        """The parameter of that name, where it is here."""
        found = dict(self.named_parameters()).get(key)
        return [] if found is None else [found]

    def set_tie_group(self, key: str, group: Any) -> None:
        """Nothing to keep."""

    def _drop(self, full: Callable[[nn.Parameter], torch.Tensor]) -> None:
        """Replaces what is on other ranks; notes who shares what."""
        ranks = ranks_of_parameters(self._whole, self._anatomy, self.plan, self.stages.rank_of_stage)
        names = {id(parameter): name for name, parameter in self._whole.named_parameters()}
        self._ties = {names[key]: tuple(sorted(found)) for key, found in ranks.items() if len(found) > 1}
        kept = {key for key, found in ranks.items() if self.stages.rank in found}
        for parameter in self._whole.parameters():
            if is_placeholder(parameter.data):
                value = full(parameter)
                if id(parameter) in kept:
                    assign(parameter, value.detach().clone())
        self._prune(self._whole, "", kept, set())

    def _prune(self, module: nn.Module, path: str, kept: set[int], named: set[int]) -> None:
        """Stand-ins for modules without parameters that are kept, or whose kept ones have an earlier name."""
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) not in kept:
                module._parameters[name] = None
            elif parameter is not None:
                named.add(id(parameter))
        is_list = path == self._anatomy.layers
        for index, (name, child) in enumerate(list(module._modules.items())):
            if child is None:
                continue
            owned = [id(parameter) for parameter in child.parameters()]
            here = [key for key in owned if key in kept]
            is_used = self._is_used(f"{path}.{name}" if path else name)
            if is_list and self.stages.rank_of_stage[self.plan.stage_of(index)] != self.stages.rank:
                module._modules[name] = AbsentLayer(child, self._anatomy.returns)
            elif owned and (not here or (not is_used and named.issuperset(here))):
                module._modules[name] = Absent(child)
            else:
                self._prune(child, f"{path}.{name}" if path else name, kept, named)

    def _is_used(self, path: str) -> bool:
        """Whether anything under `path` runs on this rank."""
        mine = [*(self._anatomy.before if self.stages.has_first else ())]
        mine += [*(self._anatomy.after if self.stages.has_last else ()), self._anatomy.layers]
        return any(f"{used}.".startswith(f"{path}.") or f"{path}.".startswith(f"{used}.") for used in mine)
