"""`PipelineModule`: a model as a row of layers, of which each rank makes those of its own stages.

Names are those of the whole model on every rank: ``layers.3.weight`` is in the layer with index 3, wherever that is,
and a tied layer is ``tied.KEY.weight`` on each rank that uses it. So state dicts and checkpoints fit any division.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ds_core import comm
from ds_core.construction import is_divided_by, making
from ds_core.placeholder import assign, is_placeholder
from ds_pipeline.errors import PartitionError, PipelineError
from ds_pipeline.given import begin_process_group, cost_of, count_pipe_ranks, first_of_each_key
from ds_pipeline.partition import LayerCost, PartitionPlan, plan_partition
from ds_pipeline.profile import measure_on_first_rank
from ds_pipeline.recompute import checkpointed, run_layers
from ds_pipeline.saved_layers import SavedLayers
from ds_pipeline.schedules import looped
from ds_pipeline.spec import LayerSpec, TiedLayerSpec
from ds_pipeline.stage import Stages

if TYPE_CHECKING:
    from ds_pipeline.topology import PipelineParallelGrid, ProcessTopology

__all__ = ["PipelineModule"]

logger = logging.getLogger(__name__)

Layer = Callable[[Any], Any]


class PipelineModule(SavedLayers, nn.Module):
    """Layers in a row, each taking what the one before gave: a tensor, or a tuple of tensors.

    In a job with several ranks it holds this rank's stages; the pipe axis is the outermost, so with two stages the
    first half of the ranks has the first. Alone it holds all layers and is a plain sequential model. Made on all ranks.

    Args:
        layers: `LayerSpec`, `TiedLayerSpec`, modules or functions. Modules that exist already are on every rank until
            the pipeline is made.
        num_stages: pipe ranks; must divide the number of ranks.
        topology: instead of `num_stages`, a `ProcessTopology` with an axis ``pipe``.
        loss_fn: called with the last layer's output and the labels; None: the output is the loss.
        seed_layers: seed before each layer is made, with ``base_seed`` + its index, so that weights do not depend on
            how layers are divided.
        seed_fn: called with that number; default ``torch.manual_seed``.
        base_seed: see `seed_layers`.
        partition_method: see `ds_pipeline.partition.plan_partition`.
        activation_checkpoint_interval: layers that are run again in backward together; 0: none.
        activation_checkpoint_func: recomputes, called with a function and its input; default that of torch.
        checkpointable_layers: class names; only groups of such layers are recomputed. None: all with parameters.
        dynamic_shape: activations may change their shapes from one micro-batch to the next.
        sample: input of the first layer for one micro-batch, to measure layers with (partition ``profile``, ``best``).
        rank_of_stage: the pipe rank of each stage, where a rank has several. The engine asks for this by itself when
            the config's schedule needs it; said here, layers are not made twice.

    Attributes:
        plan: which layers each stage has; ``partition_plan`` is its text.
        stages: which stages this rank has.
        tied: tied layers of this rank by key.
        asked_stages: pipe ranks it was made for, also where it is alone.

    Raises:
        PartitionError: the layers cannot be divided as asked, for example a stage would have no parameters.
        PipelineError: the number of stages does not fit the job; or it is made inside `ds_zero.Init`.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec | nn.Module | Layer],
        num_stages: int | None = None,
        topology: ProcessTopology | None = None,
        loss_fn: Callable[[Any, Any], torch.Tensor] | None = None,
        seed_layers: bool = False,
        seed_fn: Callable[[int], Any] | None = None,
        base_seed: int = 1234,
        partition_method: str | Sequence[int] = "parameters",
        activation_checkpoint_interval: int = 0,
        activation_checkpoint_func: Callable[..., Any] = checkpointed,
        checkpointable_layers: Collection[str] | None = None,
        dynamic_shape: bool = False,
        *,
        sample: Any = None,
        rank_of_stage: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        begin_process_group()
        self.loss_fn: Callable[[Any, Any], torch.Tensor] | None = loss_fn
        self.seed_layers: bool = seed_layers
        self.seed_fn: Callable[[int], Any] = seed_fn or torch.manual_seed
        self.base_seed: int = base_seed
        self.partition_method: str | Sequence[int] = partition_method
        self.activation_checkpoint_interval: int = 0
        self.activation_checkpoint_func: Callable[..., Any] = activation_checkpoint_func
        self.checkpointable_layers: Collection[str] | None = checkpointable_layers
        self.dynamic_shape: bool = dynamic_shape
        self.set_checkpoint_interval(activation_checkpoint_interval)
        self._topology: ProcessTopology | None = topology
        self._specs: list[LayerSpec | nn.Module | Layer] = list(layers)
        self._first_of_key: dict[str, int] = first_of_each_key(self._specs)
        self._tie_groups: dict[str, Any] = {}
        self._run: dict[int, Layer] = {}
        self.layers = nn.ModuleDict()
        self.tied = nn.ModuleDict()
        ranks = count_pipe_ranks(num_stages, topology)
        self.asked_stages: int = num_stages or (ranks if topology is None else topology.get_dim("pipe"))
        _refuse_divided(ranks)
        self.stages: Stages = Stages((0,), 0)
        with torch.random.fork_rng(devices=[]):
            self._costs: list[LayerCost] = self._measure(sample)
        self.plan: PartitionPlan
        placed = tuple(rank_of_stage) if rank_of_stage is not None and ranks > 1 else looped(ranks)
        if max(placed) + 1 != ranks:
            raise PipelineError(f"rank_of_stage names {max(placed) + 1} pipe ranks, and num_stages is {ranks}")
        self.assign(placed, partition_method)

    # ---- what is where ----

    def assign(self, rank_of_stage: Sequence[int], partition: str | Sequence[int] | None = None) -> None:
        """Divides the layers anew, and makes or drops layers accordingly. Called on all ranks; keeps what stays.

        Args:
            rank_of_stage: the pipe rank of each stage.
            partition: None keeps the method.

        Raises:
            PartitionError: the layers cannot be divided so.
        """
        placed = tuple(rank_of_stage)
        method = self.partition_method if partition is None else partition
        self.plan = plan_partition(self._costs, len(placed), method)
        self.partition_method = method
        self.stages = Stages(placed, comm.get_rank() // (comm.get_world_size() // (max(placed) + 1)))
        wanted = [index for stage in self.stages.local for index in range(*self.plan.span(stage))]
        self._refuse_hidden_ties()
        kept, self._run = self._run, {}
        for index in wanted:
            if index not in kept:
                with making(self._makers(index)):
                    self._run[index] = self._make(index)
            else:
                self._run[index] = kept[index]
        for name in [name for name in self.layers if int(name) not in self._run]:
            del self.layers[name]
        in_use = {spec.key for index, spec in self._tied_specs() if index in self._run}
        for key in [key for key in self.tied if key not in in_use]:
            del self.tied[key]
        if comm.get_rank() == 0:
            logger.info("%s", self.plan)

    def plan_ranks(self, rank_of_stage: Sequence[int], partition: str | Sequence[int] | None) -> dict[int, set[int]]:
        """Pipe ranks that would have each parameter, by id, were the layers, all of which are here, divided so.

        Raises:
            PartitionError: the layers cannot be divided so.
        """
        placed = tuple(rank_of_stage)
        plan = plan_partition(self._costs, len(placed), self.partition_method if partition is None else partition)
        found: dict[int, set[int]] = {}
        for index, spec in enumerate(self._specs):
            made = self.tied[spec.key] if isinstance(spec, TiedLayerSpec) else self._run[index]
            for parameter in made.parameters() if isinstance(made, nn.Module) else ():
                found.setdefault(id(parameter), set()).add(placed[plan.stage_of(index)])
        return found

    def gather_layers(self, full: Callable[[nn.Parameter], torch.Tensor]) -> None:
        """Makes layers whole that were given as modules and constructed in pieces. Called on all ranks.

        Args:
            full: the value of such a parameter; called on all ranks in one order.
        """
        given = [(index, spec) for index, spec in enumerate(self._specs) if isinstance(spec, nn.Module)]
        mine = {id(parameter) for index, spec in given if index in self._run for parameter in spec.parameters()}
        for parameter in nn.ModuleList(spec for _, spec in given).parameters():  # each once
            if is_placeholder(parameter.data):
                value = full(parameter)
                if id(parameter) in mine:
                    assign(parameter, value.detach().clone())

    def forget_layers(self) -> None:
        """Drops every layer that is made from a description; `assign` makes them anew."""
        for index in [index for index in self._run if isinstance(self._specs[index], LayerSpec)]:
            del self._run[index]
        self.tied.clear()

    @property
    def partition_plan(self) -> str:
        """A table: layers, parameters, and measured time and memory of every stage."""
        return str(self.plan)

    @property
    def partitions(self) -> list[int]:
        """Boundaries of the stages: stage s has layers ``partitions[s]`` up to ``partitions[s + 1]``."""
        return list(self.plan.boundaries)

    def stage_owner(self, layer_idx: int) -> int:
        """The stage that has the layer.

        Raises:
            PipelineError: there is no such layer.
        """
        if not 0 <= layer_idx < len(self._specs):
            raise PipelineError(f"layer {layer_idx} does not exist: the model has layers 0 to {len(self._specs) - 1}")
        return self.plan.stage_of(layer_idx)

    def num_pipeline_stages(self) -> int:
        """Number of pipe ranks; 1 alone."""
        return self.stages.ranks

    def topology(self) -> ProcessTopology:
        """Who is where: the topology given, or pipe x data."""
        from ds_pipeline.topology import PipeDataParallelTopology

        ranks = self.stages.ranks
        if self._topology is not None and ranks > 1:
            return self._topology
        return PipeDataParallelTopology(num_pp=ranks, num_dp=comm.get_world_size() // ranks)

    def mpu(self) -> PipelineParallelGrid:
        """The topology with groups, under the names that model-parallel code asks for. Called on all ranks."""
        from ds_pipeline.topology import PipelineParallelGrid

        return PipelineParallelGrid(topology=self.topology())

    # ---- running ----

    def forward(self, inputs: Any, *, stage: int | None = None, targets: Any = None, with_loss: bool = False) -> Any:
        """One stage, or, where this rank has one stage or all of them, everything that is here; see `Staged`."""
        if stage is None:
            local = self.stages.local
            if len(local) > 1 and self.stages.ranks > 1:
                raise PipelineError(
                    f"this rank has {self.stages.title}: say which with stage=, or call engine.train_batch"
                )
            span = (self.plan.span(local[0])[0], self.plan.span(local[-1])[1])
        else:
            span = self.plan.span(stage)
        outputs = run_layers(
            [self._run[index] for index in range(*span)],
            inputs,
            interval=self.activation_checkpoint_interval,
            function=self.activation_checkpoint_func,
            classes=self.checkpointable_layers,
        )
        if not with_loss:
            return outputs
        return (outputs if self.loss_fn is None else self.loss_fn(outputs, targets)), outputs

    def split_batch(self, batch: Any) -> tuple[Any, Any]:
        """(inputs, labels); see `Staged`.

        Raises:
            PipelineError: the batch is something else.
        """
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise PipelineError(
                f"a batch of a PipelineModule is a pair (inputs, labels), got {type(batch).__name__}"
                + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
                + "; engine.set_batch_fn(fn) takes a function that makes one"
            )
        inputs, targets = batch
        return (tuple(inputs) if isinstance(inputs, list) else inputs), targets

    @property
    def recomputes(self) -> bool:
        """Whether backward runs layers again."""
        return self.activation_checkpoint_interval > 0

    def set_checkpoint_interval(self, interval: int) -> None:
        """Layers that are run again in backward together, from the next forward on; 0: none."""
        if interval < 0:
            raise PipelineError(f"activation_checkpoint_interval must be at least 0, got {interval}")
        self.activation_checkpoint_interval = interval

    # ---- tied layers ----

    def tied_ranks(self) -> dict[str, list[int]]:
        """Pipe ranks that use each tied layer, by key; the same on all ranks."""
        found: dict[str, set[int]] = {}
        for index, spec in self._tied_specs():
            found.setdefault(spec.key, set()).add(self.stages.rank_of_stage[self.plan.stage_of(index)])
        return {key: sorted(ranks) for key, ranks in found.items()}

    def tied_parameters(self, key: str) -> list[nn.Parameter]:
        """Parameters of a tied layer, where this rank uses it."""
        return list(self.tied[key].parameters()) if key in self.tied else []

    def set_tie_group(self, key: str, group: Any) -> None:
        """Notes the process group of the ranks that use tied layer `key`."""
        self._tie_groups[key] = group

    def get_tied_weights_and_groups(self) -> list[tuple[torch.Tensor, Any]]:
        """Every shared weight of this rank that other stages have, too, with the group of those ranks.

        There are groups once the module is in an engine.
        """
        return [
            (parameter, self._tie_groups[key])
            for key, module in self.tied.items()
            if key in self._tie_groups
            for parameter in module.parameters()
        ]

    def allreduce_tied_weight_gradients(self) -> None:
        """Adds up gradients of tied weights by hand; ``train_batch`` needs no such call. Called on all ranks."""
        for weight, group in self.get_tied_weights_and_groups():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            comm.all_reduce(weight.grad, group=group)

    def get_additional_losses(self) -> None:
        """Losses to report beside the main one: none."""
        return None

    # ---- making layers ----

    def _tied_specs(self) -> Iterator[tuple[int, TiedLayerSpec]]:
        return ((index, spec) for index, spec in enumerate(self._specs) if isinstance(spec, TiedLayerSpec))

    @contextmanager
    def _seeded(self, index: int) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]) if self.seed_layers else nullcontext():
            if self.seed_layers:
                self.seed_fn(self.base_seed + index)
            yield

    def _makers(self, index: int) -> list[int]:
        """World ranks that make a layer: those of its stage, or of every stage that has its key."""
        spec = self._specs[index]
        key = spec.key if isinstance(spec, TiedLayerSpec) else None
        places = {index, *(at for at, other in self._tied_specs() if other.key == key)}
        each = comm.get_world_size() // self.stages.ranks
        pipe = {self.stages.rank_of_stage[self.plan.stage_of(at)] for at in places}
        return [rank for rank in range(comm.get_world_size()) if rank // each in pipe]

    def _make(self, index: int) -> Layer:
        spec = self._specs[index]
        if isinstance(spec, TiedLayerSpec):
            return self._make_tied(spec)
        if isinstance(spec, LayerSpec):
            with self._seeded(index):
                spec = spec.build()
        if isinstance(spec, nn.Module):
            self.layers[str(index)] = spec
        elif not callable(spec):
            raise PipelineError(f"layer {index} is {spec!r}: give LayerSpec, a torch.nn.Module or a function")
        return spec

    def _make_tied(self, spec: TiedLayerSpec) -> Layer:
        if spec.key not in self.tied:
            first = self._first_of_key[spec.key]
            with self._seeded(first):
                described: Any = self._specs[first]
                self.tied[spec.key] = described.build()
        module = self.tied[spec.key]
        spec.weights(module)
        return module if spec.forward_fn is None else partial(spec.forward_fn, module)

    def _measure(self, sample: Any) -> list[LayerCost]:
        layers = [cost_of(spec) for spec in self._specs]
        if not layers:
            raise PartitionError("a PipelineModule needs at least one layer")
        if sample is None or self.partition_method not in ("best", "profile"):
            return layers
        with making([0]):
            return measure_on_first_rank(layers, self._made_alone, sample)

    def _made_alone(self, index: int) -> Layer:
        spec = self._specs[index]
        made: Layer = spec.build() if isinstance(spec, LayerSpec) else spec
        if isinstance(spec, TiedLayerSpec) and spec.forward_fn is not None:
            return partial(spec.forward_fn, made)
        return made

    def _refuse_hidden_ties(self) -> None:
        owners: dict[int, tuple[int, int]] = {}
        for index, spec in enumerate(self._specs):
            rank = self.stages.rank_of_stage[self.plan.stage_of(index)]
            for parameter in spec.parameters() if isinstance(spec, nn.Module) else ():
                first, other = owners.setdefault(id(parameter), (index, rank))
                if other != rank:
                    raise PartitionError(
                        f"layers {first} and {index} share a parameter and are on pipe ranks {other} and {rank}, where "
                        "it would become two: describe both with TiedLayerSpec and one key"
                    )


def _refuse_divided(ranks: int) -> None:
    divider = is_divided_by()
    if divider is not None and ranks > 1:
        raise PipelineError(
            f"a PipelineModule of {ranks} stages cannot be made inside {divider}, where all ranks make all layers and "
            "keeps a piece of each: make it outside; a rank makes its own stages only (LayerSpec), so none needs "
            "the memory for all"
        )
