"""The engine: drives a module, an optimizer and an ordered list of parts, and knows none of the parts by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ds_core.engine_api import EngineApi
from ds_core.errors import EngineError, PluginError
from ds_core.monitors import MonitorMaster
from ds_core.part import Part, Update, overrides
from ds_core.parts.schedule import Schedule
from ds_core.watch import OutputWatch

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.data import DistributedLoader
    from ds_core.holdings import Holding
    from ds_core.parts import Accumulation
    from ds_core.units import Unit

__all__ = ["Engine"]


class Engine(EngineApi):
    """Trains `module` as the config says.

    Drive it with ``engine(batch)``, ``engine.backward(loss)``, ``engine.step()``, or with plain ``loss.backward()``,
    or hand it an iterator with ``train_batch``. Attributes the engine lacks are looked up on the module.

    Attributes:
        module: the wrapped module.
        optimizer: the optimizer handle, or None.
        lr_scheduler: the schedule, or None.
        monitor: where metrics go; a script writes its own with ``monitor.write_events``; silent on other ranks.
        training_dataloader: the loader made from ``training_data``, or None.
        global_steps, global_samples, micro_steps, skipped_steps: counters since the start of training.
    """

    def __init__(self, build: Build, parts: list[Part]) -> None:
        super().__init__()
        self.module: torch.nn.Module = build.module
        self.config = build.config
        self.accelerator = build.accelerator
        self.mesh = build.mesh
        self.device: torch.device = build.device
        self.parts: list[Part] = parts
        self.runner = build.runner
        self.units: Sequence[Unit] = build.units
        self.holdings: Mapping[torch.nn.Parameter, Holding] = build.holdings
        self.monitor: MonitorMaster = build.monitor or MonitorMaster({}, rank=1)
        self.optimizer = build.optimizer_handle(parts)
        self._schedule: Schedule | None = next((part for part in parts if isinstance(part, Schedule)), None)
        self.training_dataloader: DistributedLoader | None = build.loader
        self.global_steps: int = 0
        self.global_samples: int = 0
        self.micro_steps: int = 0
        self.skipped_steps: int = 0
        self._last_update: Update | None = None
        self._iterator: Iterator[Any] | None = None
        self._accumulation: Accumulation = build.accumulation
        self._forward_contexts = overrides(parts, "forward_context")
        self._cast_inputs = overrides(parts, "cast_inputs")
        self._loss_factors = overrides(parts, "loss_factor")
        self._observe_loss = overrides(parts, "observe_loss")
        self._before_backward = overrides(parts, "before_backward")
        self._after_backward = overrides(parts, "after_backward")
        self._before_step = overrides(parts, "before_step")
        self._before_update = overrides(parts, "before_update")
        self._update = overrides(parts, "update")
        self._after_update = overrides(parts, "after_update")
        self._after_step = overrides(parts, "after_step")
        self._zero_grad = overrides(parts, "zero_grad")
        self._watch = OutputWatch(self._begin_backward, self._end_backward)
        self._methods = _named_by(parts, "engine_methods", set())
        self._values = _named_by(parts, "engine_values", set(self._methods))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module as the parts ask (autocast, input casts, gathering).

        Raises:
            EngineError: the runner drives the module itself.
        """
        if self.runner.is_exclusive:
            raise self._refusal("engine(...)")
        output = self.run_forward(*args, **kwargs)
        if torch.is_grad_enabled() and self.module.training:
            self._watch.observe(output)
        return output

    def run_forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `forward`, for a runner: a backward through the output is the runner's to announce."""
        for cast in self._cast_inputs:
            args, kwargs = cast(args, kwargs)
        if not self._forward_contexts:
            output = self.module(*args, **kwargs)
        else:
            with ExitStack() as stack:
                for context in filter(None, (make() for make in self._forward_contexts)):
                    stack.enter_context(context)
                output = self.module(*args, **kwargs)
        return output

    def _refusal(self, call: str) -> EngineError:
        kind = type(self.runner).__name__
        return EngineError(
            f"{call} was called on an engine whose {kind} runs forward, backward and step of many micro-batches "
            "interleaved; call engine.train_batch(data_iter) or engine.eval_batch(data_iter)"
        )

    def backward(self, loss: torch.Tensor, retain_graph: bool = False, scale_wrt_gas: bool = True) -> torch.Tensor:
        """Backpropagates one loss of the current micro-batch; may be called several times before `step`.

        Args:
            loss: scalar tensor that depends on the module's parameters.
            retain_graph: keep the graph for another backward through it.
            scale_wrt_gas: divide by the number of accumulated micro-batches.

        Returns:
            The loss divided by the accumulation steps, without loss scale.

        Raises:
            EngineError: `loss` is not a scalar, or carries no graph; or the runner drives the module itself.
        """
        if self.runner.is_exclusive:
            raise self._refusal("engine.backward()")
        if loss.numel() != 1:
            raise EngineError(f"engine.backward needs a scalar loss, got shape {tuple(loss.shape)}; reduce it first")
        if not loss.requires_grad:
            raise EngineError(
                "engine.backward got a loss without a graph: it was detached, made under no_grad, or no parameter "
                "requires gradients"
            )
        self.observe_loss(loss)
        self._accumulation.scale_losses(scale_wrt_gas)
        try:
            with self.backward_pass() as factor:
                (loss * factor if factor != 1.0 else loss).backward(retain_graph=retain_graph)
        finally:
            self._accumulation.scale_losses(True)
        steps = self.gradient_accumulation_steps()
        return loss.detach() / steps if scale_wrt_gas and steps > 1 else loss.detach()

    def observe_loss(self, loss: torch.Tensor) -> None:
        """Shows a loss, unscaled, to the parts that report losses. `backward` does; for runners that do not call it."""
        for observe in self._observe_loss:
            observe(loss)

    @contextmanager
    def backward_pass(self) -> Iterator[float]:
        """A context around the autograd calls of one backward, for runners; `backward` is one.

        Yields:
            What a loss is to be multiplied by: loss scale / micro-batches of a step.
        """
        factor = self._begin_backward()
        with self._watch.driven():
            yield factor
        self._end_backward()

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss scaled by hand. A plain ``loss.backward()`` needs no scaling: the engine scales what flows in."""
        return loss

    def step(self, lr_kwargs: dict[str, Any] | None = None) -> None:
        """Ends a micro-batch; at the accumulation boundary updates parameters and schedule. Call on all ranks.

        Raises:
            Preempted: a watched signal asked the job to stop, and its state is saved (`save_on_signal`).
            EngineError: the runner drives the module itself.
        """
        if self.runner.is_exclusive:
            raise self._refusal("engine.step()")
        self.end_micro_batch(lr_kwargs)

    def end_micro_batch(self, lr_kwargs: dict[str, Any] | None = None) -> None:
        """As `step`, for a runner: once for every micro-batch, after the last of its backward passes."""
        for check in self._before_step:
            check()
        self.micro_steps += 1
        if self._accumulation.advance():
            self._take_step(lr_kwargs)

    def _take_step(self, lr_kwargs: dict[str, Any] | None) -> None:
        if self.optimizer is None:
            raise EngineError("engine.step() needs an optimizer; set optimizer.type in the config or pass optimizer=")
        samples = self.global_samples + self.train_batch_size()
        update = Update(step=self.global_steps + 1, samples=samples, lr_kwargs=lr_kwargs)
        for run in self._before_update:
            run(update)
        if update.skip_reason is None:
            for run in self._update:
                run(update)
        else:
            self.skipped_steps += 1
        for run in self._after_update:
            run(update)
        self.zero_grad()
        self.global_steps += 1
        self.global_samples = samples
        self._last_update = update
        for finish in self._after_step:
            finish(self)

    def _begin_backward(self) -> float:
        for run in self._before_backward:
            run()
        factor = 1.0
        for ask in self._loss_factors:
            factor *= ask()
        return factor

    def _end_backward(self) -> None:
        for run in self._after_backward:
            run()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets accumulated gradients."""
        for run in self._zero_grad:
            run()

    def train_batch(self, data_iter: Iterator[Any] | None = None) -> torch.Tensor:
        """One full step over micro-batches from `data_iter` or the training loader. Called on all ranks.

        Returns the mean loss of the whole batch, 0-dim.
        """
        return self.runner.train_batch(self, self._batches(data_iter))

    def eval_batch(self, data_iter: Iterator[Any] | None = None, **options: Any) -> Any:
        """The mean loss of as many micro-batches as a step has, without gradients; `options` are the runner's."""
        return self.runner.eval_batch(self, self._batches(data_iter), **options)

    def _batches(self, data_iter: Iterator[Any] | None) -> Iterator[Any]:
        if data_iter is not None:
            return data_iter
        if self.training_dataloader is None and not self.runner.needs_batches:
            return iter(())
        if self.training_dataloader is None:
            raise EngineError("train_batch needs data: pass an iterator, or training_data= to initialize")
        if self._iterator is None:
            from ds_core.data import RepeatingLoader

            self._iterator = iter(RepeatingLoader(self.training_dataloader))
        return self._iterator

    def destroy(self) -> None:
        """Removes hooks, closes monitors and frees buffers; the module stays usable."""
        self._watch.close()
        self.reload_states()
        with ExitStack() as stack:  # the last one first, and each of them, whatever another raises
            stack.callback(self.accelerator.empty_cache)
            for part in self.parts:
                stack.callback(part.close)

    @property
    def lr_scheduler(self) -> Any:
        """The schedule that steps advance, or None; set it to None to advance it elsewhere, as Lightning does."""
        return None if self._schedule is None else self._schedule.scheduler

    @lr_scheduler.setter
    def lr_scheduler(self, schedule: Any) -> None:
        if self._schedule is not None:
            self._schedule.scheduler = schedule

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module" or name.startswith("__"):
                raise
            method = self.__dict__.get("_methods", {}).get(name)
            if method is not None:
                return method
            value = self.__dict__.get("_values", {}).get(name)
            if value is not None:
                return value()
            return getattr(super().__getattr__("module"), name)


def _named_by(parts: Sequence[Part], kind: str, taken: set[str]) -> dict[str, Callable[..., Any]]:
    """What parts add to the engine for its users, methods or values.

    Raises:
        PluginError: two parts bring one name, or one the engine has.
    """
    found: dict[str, Callable[..., Any]] = {}
    owners: dict[str, str] = {}
    for part in parts:
        for name, made in getattr(part, kind)().items():
            if name in found or name in taken or hasattr(Engine, name):
                owner = f"part {owners[name]!r}" if name in found else "the engine itself"
                raise PluginError(f"part {part.name!r} brings engine.{name}, which {owner} has")
            found[name], owners[name] = made, part.name
    return found
