"""What users call on an engine besides the training loop: batch sizes, accumulation, data, status."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_core.accessors import ConfigAccessors
from ds_core.checkpoint_api import CheckpointApi
from ds_core.data.styles import is_iterable_style_dataset, is_map_style_dataset
from ds_core.errors import EngineError
from ds_core.familiar import FamiliarNames
from ds_core.part import Part, Update, overrides
from ds_core.parts.residence import parse_device, parse_kinds

if TYPE_CHECKING:
    from ds_core.config import Config
    from ds_core.data import DistributedLoader
    from ds_core.holdings import Holding
    from ds_core.mesh import Mesh
    from ds_core.optimizer_handle import OptimizerHandle
    from ds_core.parts import Accumulation
    from ds_core.units import Unit

__all__ = ["EngineApi"]


class EngineApi(CheckpointApi, ConfigAccessors, FamiliarNames, torch.nn.Module):
    """The familiar methods, each a line over the engine's parts. `ds_core.engine.Engine` brings the loop."""

    module: torch.nn.Module
    config: Config
    mesh: Mesh
    device: torch.device
    parts: list[Part]
    units: Sequence[Unit]
    """Parameters that are gathered together; none where all are whole."""
    holdings: Mapping[torch.nn.Parameter, Holding]
    """How this rank holds parameters that not every rank of the batch holds whole."""
    optimizer: OptimizerHandle | None
    lr_scheduler: Any
    training_dataloader: DistributedLoader | None
    _accumulation: Accumulation
    _last_update: Update | None
    _iterator: Iterator[Any] | None
    global_steps: int

    is_map_style_dataset = staticmethod(is_map_style_dataset)
    is_iterable_style_dataset = staticmethod(is_iterable_style_dataset)

    def is_gradient_accumulation_boundary(self) -> bool:
        """True when the current micro-batch is the last before an update."""
        return bool(self._accumulation.is_boundary())

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Overrides the boundary until it is set again."""
        self._accumulation.set_boundary(is_boundary)

    def no_sync(self) -> AbstractContextManager[None]:
        """A context in which gradients stay local; ``step`` inside it is an error."""
        return self._accumulation.no_sync()

    def coalesce_grad_reduction(self) -> AbstractContextManager[None]:
        """A context for several backwards whose gradients are reduced once, by the next backward or by ``step``."""
        return self._accumulation.coalesce()

    def allreduce_gradients(self, bucket_size: int | None = None) -> None:
        """Reduces gradients now rather than in ``step``. Call on all ranks, after the last backward.

        `bucket_size` is accepted; buckets are planned once, by ``zero_optimization.reduce_bucket_size``.
        """
        for reduce in overrides(self.parts, "reduce_gradients"):
            reduce()

    def was_step_applied(self) -> bool:
        """True when the last ``step`` changed the parameters."""
        return self._accumulation.taken == 0 and self._last_update is not None and not self._last_update.skip_reason

    def get_global_grad_norm(self) -> float | None:
        """L2 norm of the last step's averaged gradients before clipping."""
        return self._last_update.grad_norm if self._last_update is not None else None

    def set_train_batch_size(self, train_batch_size: int) -> None:
        """Changes the global batch by changing the accumulation steps; it must divide."""
        self._set_batch(self.config.batch_for(train_batch_size=train_batch_size))

    def set_train_micro_batch_size(self, micro_batch_size: int) -> None:
        """Changes the micro-batch; accumulation steps stay."""
        self._set_batch(self.config.batch_for(micro_batch_size=micro_batch_size))

    def _set_batch(self, config: Config) -> None:
        for change in overrides(self.parts, "batch_changed"):
            change(config.batch)
        self.config = config

    def train_batch_size(self) -> int:
        """Samples per update over all ranks."""
        return self.config.batch.train_batch_size

    def train_micro_batch_size_per_gpu(self) -> int:
        """Samples per forward and rank."""
        return self.config.batch.micro_batch_size

    def gradient_accumulation_steps(self) -> int:
        """Micro-batches per update."""
        return self.config.batch.accumulation_steps

    def get_batch_info(self) -> tuple[int, int, int]:
        """(global batch, micro-batch, accumulation steps)."""
        batch = self.config.batch
        return batch.train_batch_size, batch.micro_batch_size, batch.accumulation_steps

    def get_lr(self) -> list[float]:
        """Current learning rate of every parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups] if self.optimizer is not None else []

    def get_mom(self) -> list[float]:
        """Current momentum (first beta for Adam-like optimizers) of every parameter group."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return [float(g["betas"][0] if "betas" in g else g.get("momentum", 0.0)) for g in groups]

    def deepspeed_io(
        self,
        dataset: Any,
        batch_size: int | None = None,
        route: str = "train",
        pin_memory: bool = False,
        data_sampler: Any = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_local_io_workers: int | None = None,
    ) -> DistributedLoader:
        """A loader of this rank's share of `dataset`, `batch_size` samples a time (the micro-batch by default).

        `route` is what the data is for: "train", "eval" or "predict"; loaders are alike for all of them.
        """
        from ds_core.data import DistributedLoader

        return DistributedLoader(
            dataset,
            batch_size=batch_size or self.train_micro_batch_size_per_gpu(),
            rank=self.mesh.rank(*self.mesh.batch_axes),
            ranks=self.mesh.size(*self.mesh.batch_axes),
            data_sampler=data_sampler,
            collate_fn=collate_fn,
            num_local_io_workers=num_local_io_workers,
            pin_memory=pin_memory,
            drop_last=self.config.training.dataloader_drop_last,
            seed=self.config.training.seed or 0,
        )

    def set_data_post_process_func(self, post_process_func: Callable[[Any, dict[str, Any]], Any] | None) -> None:
        """Every batch of the training loader becomes what the function makes of it and of the sampler's state.

        Raises:
            EngineError: there is no ``training_data``, so that nobody would call it.
        """
        if self.training_dataloader is None:
            raise EngineError(
                "set_data_post_process_func needs training_data= in initialize: this engine has no loader"
            )
        self.training_dataloader.post_process_func = post_process_func

    def gathered(self, parameters: Iterable[torch.nn.Parameter]) -> AbstractContextManager[Any]:
        """A context in which `parameters` hold their full values on every rank."""
        stack = ExitStack()
        for enter in overrides(self.parts, "gathered"):
            stack.enter_context(enter(list(parameters)))
        return stack

    def offload_states(
        self, include: Any = None, device: Any = "cpu", pin_memory: bool = True, non_blocking: bool = False
    ) -> None:
        """Moves states off the device until `reload_states`; see `ds_core.parts.residence`. No communication.

        Args:
            include: kinds of state, by name or ``ds_core.utils.OffloadStateTypeEnum``; None: all.
            device: where to.
            pin_memory: page-lock the copies where the accelerator can.
            non_blocking: do not wait for the copies where the accelerator can do that.
        """
        kinds, target = parse_kinds(include), parse_device(device)
        for move in overrides(self.parts, "offload_states"):
            move(kinds, target, pin_memory=pin_memory, non_blocking=non_blocking)

    def reload_states(self, non_blocking: bool = False) -> None:
        """Brings back what `offload_states` moved."""
        for move in overrides(self.parts, "reload_states"):
            move(non_blocking=non_blocking)

    def comm_report(self) -> Any:
        """Calls and bytes of every collective since the start or the last ``comm.reset()``."""
        return comm.report()

    @property
    def global_rank(self) -> int:
        """This process among all."""
        return comm.get_rank()

    @property
    def local_rank(self) -> int:
        """This process among those of its machine."""
        return comm.get_local_rank()

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return comm.get_world_size()

    @property
    def dp_world_size(self) -> int:
        """Ranks among which a batch is divided."""
        return self.mesh.size(*self.mesh.batch_axes)

    def get_data_parallel_rank(self) -> int:
        """This rank among the data-parallel ones."""
        return self.mesh.rank(*self.mesh.batch_axes)

    @property
    def data_parallel_group(self) -> Any:
        """Process group of the data axis; None in a job of one process."""
        return self.mesh.group(*self.mesh.batch_axes)
