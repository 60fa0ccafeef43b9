"""What programs written for DeepSpeed find on an engine beside its methods: states of things that may not be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ds_core.errors import EngineError, MissingWheelError
from ds_core.utils.timer import NoopTimer, SynchronizedWallClockTimer

if TYPE_CHECKING:
    from ds_core.config import Config
    from ds_core.mesh import Mesh
    from ds_core.optimizer_handle import OptimizerHandle

__all__ = ["FamiliarNames"]


class FamiliarNames:
    """Attributes that tell what there is not, and calls that are one line over torch or the mesh."""

    module: torch.nn.Module
    config: Config
    mesh: Mesh
    optimizer: OptimizerHandle | None
    lr_scheduler: Any

    mpu: None = None
    """Nobody hands a mesh in; it is `mesh`."""
    progressive_layer_drop: None = None
    eigenvalue: None = None
    quantizer: None = None
    curriculum_scheduler_legacy: None = None
    random_ltd_scheduler: None = None
    compression_scheduler: None = None
    flops_profiler: None = None

    @property
    def _config(self) -> Config:
        return self.config

    @property
    def basic_optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimizer inside `optimizer`."""
        return None if self.optimizer is None else self.optimizer.optimizer

    @property
    def mp_world_size(self) -> int:
        """Ranks that work on one sample together."""
        return self.mesh.size(*self.mesh.model_axes)

    @property
    def seq_parallel_group(self) -> Any:
        """Ranks that share one sequence."""
        return self.mesh.group("sequence")

    def get_sequence_parallel_group(self) -> Any:
        """Ranks that share one sequence."""
        return self.seq_parallel_group

    def get_model_parallel_rank(self) -> int:
        """This rank among those that work on one sample together."""
        return self.mesh.rank(*self.mesh.model_axes)

    def get_tensor_parallel_rank(self) -> int:
        """This rank among those that share one layer."""
        return self.mesh.rank("tensor")

    @property
    def timers(self) -> SynchronizedWallClockTimer | NoopTimer:
        """Timers by name for a script of its own; they measure with ``wall_clock_breakdown``."""
        made = self.__dict__.get("_timers")
        if made is None:
            is_timed = self.config.training.wall_clock_breakdown
            made = self.__dict__["_timers"] = SynchronizedWallClockTimer() if is_timed else NoopTimer()
        return made

    def get_wall_clock_timers(self) -> SynchronizedWallClockTimer | NoopTimer:
        """`timers`."""
        return self.timers

    def get_type(self) -> list[Any]:
        """The schedule type of each parameter group; of one that has none, of torch, None."""
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        return [None if self.lr_scheduler is None else type(self.lr_scheduler).__name__ for _ in groups]

    def get_data_types(self) -> tuple[torch.dtype, torch.dtype]:
        """Dtype of the parameters, and of the gradients they accumulate."""
        model = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        asked = self.config.get("data_types.grad_accum_dtype")
        return model, model if asked is None else getattr(torch, asked)

    def get_pld_theta(self) -> None:
        """None: layers are not dropped."""

    def empty_partition_cache(self) -> None:
        """Gives memory back that nothing holds; gathered parameters are released as soon as they were used."""
        from ds_core import accelerator as accelerators

        accelerators.current().empty_cache()

    @property
    def is_compiled(self) -> bool:
        """Whether `compile` was called."""
        return bool(self.__dict__.get("_is_compiled", False))

    def compile(
        self,
        backend: str | Callable[..., Any] | None = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        schedule: Any = None,
        compiled_autograd_enabled: bool = False,
    ) -> None:
        """Compiles the module by ``torch.compile`` from its next call on.

        Args:
            backend: torch's compile backend; None: the accelerator's.
            compile_kwargs: more arguments of ``torch.compile``.
            schedule: refused; passes of DeepCompile come with ds-compile.
            compiled_autograd_enabled: refused, as `schedule`.

        Raises:
            MissingWheelError: something is asked for that comes with ds-compile.
            EngineError: the accelerator has no compile backend, and none is named.
        """
        if schedule is not None or compiled_autograd_enabled:
            raise MissingWheelError(
                "engine.compile(schedule=) and compiled_autograd_enabled are planned in ds-compile, which is not "
                "released yet; leave them out"
            )
        from ds_core import accelerator as accelerators

        device = accelerators.current()
        chosen = backend or device.compile_backend()
        if chosen is None:
            raise EngineError(f"accelerator {device.name} has no compile backend; name one: engine.compile(backend=)")
        self.module.compile(backend=chosen, **(compile_kwargs or {}))
        self.__dict__["_is_compiled"] = True

    def register_compile_pass(self, pass_name: str, pass_fn: Callable[..., Any], contract: Any = None) -> NoReturn:
        """Refused; see `_later`."""
        raise _later("register_compile_pass", "ds-compile")

    def get_compile_time(self) -> NoReturn:
        """Refused; see `_later`."""
        raise _later("get_compile_time", "ds-compile")

    def set_custom_curriculum_learning_schedule(self, schedule_func_dict: Mapping[str, Any]) -> NoReturn:
        """Refused; see `_later`."""
        raise _later("set_custom_curriculum_learning_schedule", "ds-data")

    def random_ltd_initialize(self) -> NoReturn:
        """Refused; see `_later`."""
        raise _later("random_ltd_initialize", "ds-data")

    def print_forward_breakdown(self, fwd_time: float) -> NoReturn:
        """Refused: gates and experts are not timed apart.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "print_forward_breakdown: times of gates and experts are not taken; wall_clock_breakdown reports forward, "
            "backward and step, and torch.profiler what is inside"
        )

    def is_deepcompile_enabled(self) -> bool:
        """False."""
        return False

    def is_deepcompile_active(self) -> bool:
        """False."""
        return False

    def clip_fp32_gradients(self) -> NoReturn:
        """Refused: clipping is a part of ``step``.

        Raises:
            EngineError: always.
        """
        raise EngineError("gradients are clipped inside engine.step(), by gradient_clipping; set it in the config")


def _later(method: str, wheel: str) -> MissingWheelError:
    """The error for what a wheel that is not released will bring."""
    return MissingWheelError(f"engine.{method} is planned in {wheel}, which is not released yet")
