"""`OpOptimizer`: what optimizers made of one op of the op table share, from groups and states to flat runs.

Note [Undecorated]
    ``torch.optim.Optimizer.add_param_group`` is decorated so that torch's compiler leaves it alone, and the decorator
    imports that compiler, which takes more than a second and 85 MB in every process. Calling the method it wraps does
    the same work; where torch no longer wraps it, the method itself is called.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch

from ds_core.errors import ConfigError, EngineError, OpError
from ds_core.optim.flat import FlatUpdate
from ds_core.optim.journal import Journal
from ds_core.placeholder import is_same_memory

__all__ = ["Allowed", "FlatOpOptimizer", "FlatStep", "OpOptimizer", "not_negative", "seed_of"]

_SEED_MASK = 2**63 - 1


class Allowed(NamedTuple):
    """What a hyperparameter may be, in words, and whether it is."""

    key: str
    words: str
    fits: bool


def not_negative(group: Mapping[str, Any], *keys: str) -> list[Allowed]:
    """The rows of hyperparameters that are 0 or more."""
    return [Allowed(key, "0 or more", float(group[key]) >= 0) for key in keys]


class FlatStep(NamedTuple):
    """One call of the op.

    Attributes:
        param: 1-D, as are the gradient, the states and `copy_out`.
        states: by name, as in the optimizer's state.
        step: number of the update, counting from 1.
        hyper: of the group, as `OpOptimizer.hyperparameters` gives them.
    """

    param: torch.Tensor
    grad: torch.Tensor
    states: dict[str, torch.Tensor]
    copy_out: torch.Tensor | None
    step: int
    hyper: dict[str, Any]
    grad_factor: torch.Tensor | None = None
    rounding_seed: int = -1
    rounding_offset: int = 0


class OpOptimizer(torch.optim.Optimizer, abc.ABC):
    """Optimizer over parameters in float32, bfloat16 or float16, with gradients of any of these.

    Besides ``step`` it has ``step_subgroup`` and ``rollback_subgroup``, and, in `FlatOpOptimizer`, ``step_flat``.

    Args:
        params: tensors, named tensors or group dicts, as torch takes them.
        defaults: hyperparameters of groups that do not say their own.
        fp32_states: states in float32 whatever the parameter is; False keeps them in the parameter's dtype.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    config_name: ClassVar[str]
    """What a config calls it, for messages."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], *, fp32_states: bool = True) -> None:
        self.check_group(defaults)
        self._fp32_states: bool = fp32_states
        self.journal: Journal = Journal()
        self._opt_called: bool = False
        super().__init__(params, defaults)

    # --- what a subclass says -----------------------------------------------------------------------------------

    @abc.abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """The states shaped like the parameter."""

    @abc.abstractmethod
    def allowed(self, group: Mapping[str, Any]) -> list[Allowed]:
        """The hyperparameters of a group that have a range."""

    @abc.abstractmethod
    def hyperparameters(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What the op is given of a group."""

    @abc.abstractmethod
    def run(self, call: FlatStep) -> None:
        """Calls the op."""

    def initial_value(self, name: str) -> float:
        """What a state is filled with before the first update."""
        return 0.0

    def step_sparse(self, param: torch.Tensor, hyper: dict[str, Any]) -> None:
        """Updates a parameter with a sparse gradient.

        Raises:
            EngineError: this optimizer takes dense gradients only.
        """
        assert param.grad is not None
        raise EngineError(
            f"{type(self).__name__} takes dense gradients, got {param.grad.layout} for a parameter of shape "
            f"{tuple(param.shape)}. Use sparse=False in the embedding, or torch.optim.SparseAdam for it."
        )

    # --- groups -------------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, with the group's own hyperparameters checked.

        Raises:
            ConfigError: a hyperparameter is out of range.
        """
        self.check_group({**self.defaults, **param_group})
        # See Note [Undecorated]: torch's method is wrapped to be skipped by its compiler, and the wrapper imports it.
        undecorated = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", None)
        if undecorated is None:
            super().add_param_group(param_group)
        else:
            undecorated(self, param_group)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuses hyperparameters out of range.

        Raises:
            ConfigError: names the first.
        """
        for row in self.allowed(group):
            if not row.fits:
                raise ConfigError(
                    f"optimizer.params.{row.key} of {self.config_name} must be {row.words}, got {group[row.key]!r}."
                )

    # --- steps --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient; returns what `closure` returned.

        Raises:
            EngineError: a gradient is sparse, and this optimizer takes dense ones.
        """
        loss = _call(closure)
        for group in self.param_groups:
            hyper = self.hyperparameters(group)
            for param in group["params"]:
                if param.grad is not None:
                    self.step_param(param, hyper)
        return loss

    def step_param(self, param: torch.Tensor, hyper: dict[str, Any]) -> None:
        """Updates one parameter from its gradient."""
        grad = param.grad
        assert grad is not None
        if grad.layout != torch.strided:
            self.step_sparse(param, hyper)
            return
        state = self.state_of(param)
        state["step"] += 1
        values = param.detach()
        dense = values.contiguous().view(-1)
        states = {key: state[key].view(-1) for key in self.state_names()}
        self.run(FlatStep(dense, grad.detach().contiguous().view(-1), states, None, int(state["step"]), hyper))
        if not is_same_memory(dense, values):
            values.copy_(dense.view(values.shape))

    @torch.no_grad()
    def step_subgroup(self, subgroup_id: int, closure: Callable[[], Any] | None = None) -> Any:
        """Updates one sub-group, and remembers how to undo it until `commit_subgroup` or its next step.

        A sub-group is one tensor this optimizer updates, counted from 0 through the groups in order. Remembering costs
        a copy of the parameter and its states, see Note [Copies and not inverses] in `ds_core.optim.journal`.

        Returns:
            What `closure` returned.

        Raises:
            EngineError: there is no such sub-group.
        """
        group, param = self._subgroup(subgroup_id)
        loss = _call(closure)
        if param.grad is not None:
            self.journal.note(subgroup_id, param, dict(self.state[param]))
            self.step_param(param, self.hyperparameters(group))
        self.mark_stepped()
        return loss

    @torch.no_grad()
    def rollback_subgroup(self, subgroup_id: int, closure: Callable[[], Any] | None = None) -> Any:
        """Undoes the last `step_subgroup` of a sub-group, bit for bit; returns what `closure` returned.

        Raises:
            EngineError: there is no such sub-group, or nothing to undo.
        """
        _, param = self._subgroup(subgroup_id)
        loss = _call(closure)
        self.journal.undo(subgroup_id, param, self.state[param])
        if not self.state[param]:
            del self.state[param]
        return loss

    def commit_subgroup(self, subgroup_id: int | None = None) -> None:
        """Frees the memory that undoing a sub-group's last step would need; of all sub-groups by default."""
        self.journal.commit(subgroup_id)

    def mark_stepped(self) -> None:
        """Tells torch's schedules that there was a step, which they else learn from calls of ``step``."""
        self._opt_called = True

    def _subgroup(self, subgroup_id: int) -> tuple[dict[str, Any], torch.Tensor]:
        left = subgroup_id
        for group in self.param_groups:
            if 0 <= left < len(group["params"]):
                return group, group["params"][left]
            left -= len(group["params"])
        count = sum(len(group["params"]) for group in self.param_groups)
        raise EngineError(f"there is no sub-group {subgroup_id}: this optimizer updates {count} tensors, from 0 on.")

    # --- states -------------------------------------------------------------------------------------------------

    def state_of(self, param: torch.Tensor) -> dict[str, Any]:
        """The states of `param`, made where it was never updated."""
        state: dict[str, Any] = self.state[param]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        for key in self.state_names():
            if state.get(key) is None:
                fill, dtype = self.initial_value(key), self._state_dtype(param)
                state[key] = torch.full(param.shape, fill, dtype=dtype, device=param.device)
        return state

    def run_of(self, update: FlatUpdate) -> tuple[dict[str, Any], int, int]:
        """The states of the parameter that a run belongs to, with the step counted, and the run's range in it.

        Raises:
            OpError: the run does not lie within its parameter.
        """
        param = self.param_groups[update.group]["params"][update.param_index]
        start, stop = update.state_offset, update.state_offset + update.param.numel()
        if start < 0 or stop > param.numel():
            raise OpError(
                f"a flat update of elements {start} to {stop} does not lie within parameter {update.param_index} "
                f"of group {update.group}, which has {param.numel()} elements."
            )
        state = self.state_of(param)
        state["step"].fill_(max(update.step, int(state["step"])))
        return state, start, stop

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, with states kept in the dtype this optimizer gives them and nothing shared with `state_dict`.

        A state dict of torch's class of the same name loads too; what its groups do not say stays as it is here.
        """
        before = [dict(group) for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, before, strict=True):
            for key, value in own.items():
                group.setdefault(key, value)
        self.journal.commit()
        saved = state_dict["state"]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(indices, params, strict=True):
            if saved.get(index):
                self._take(param, saved[index])

    def _take(self, param: torch.Tensor, saved: Mapping[str, Any]) -> None:
        state = self.state[param]
        for key in self.state_names():
            if saved.get(key) is not None:
                dtype = self._state_dtype(param)
                state[key] = saved[key].detach().to(device=param.device, dtype=dtype, copy=True).contiguous()
        state["step"] = torch.tensor(float(saved.get("step", 1)), dtype=torch.float32)  # torch's SGD counts none

    def _state_dtype(self, param: torch.Tensor) -> torch.dtype:
        return torch.float32 if self._fp32_states else param.dtype


class FlatOpOptimizer(OpOptimizer):
    """An elementwise `OpOptimizer`: updates runs of a flat parameter, with unscale, clip and the rounded copy."""

    @torch.no_grad()
    def step_flat(
        self, updates: Sequence[FlatUpdate], *, grad_factor: torch.Tensor | None = None, rounding_seed: int = -1
    ) -> None:
        """Updates each run; see `ds_core.optim.flat.FlatOptimizer`.

        The states of a run are the same stretch of its parameter's states, and ``state["step"]`` becomes the highest
        step among its runs. Stochastic rounding draws by the position within the parameter, so it does not depend on
        how a parameter is cut into runs.

        Raises:
            OpError: a run does not lie within its parameter.
        """
        self.mark_stepped()
        hypers = [self.hyperparameters(group) for group in self.param_groups]
        for update in updates:
            state, start, stop = self.run_of(update)
            states = self.take(state, start, stop)
            self.run(
                FlatStep(
                    update.param,
                    update.grad,
                    states,
                    update.copy_out,
                    update.step,
                    hypers[update.group],
                    grad_factor,
                    seed_of(rounding_seed, update),
                    start if update.position < 0 else update.position,
                )
            )
            self.give(state, start, stop, states)

    def take(self, state: dict[str, Any], start: int, stop: int) -> dict[str, torch.Tensor]:
        """The 1-D states of elements `start` to `stop`, to be changed in place."""
        return {key: state[key].view(-1)[start:stop] for key in self.state_names()}

    def give(self, state: dict[str, Any], start: int, stop: int, states: dict[str, torch.Tensor]) -> None:
        """Takes back what `take` gave, changed; nothing to do where it gave views."""


def _call(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def seed_of(rounding_seed: int, update: FlatUpdate) -> int:
    """A seed for each parameter that has no position, so that two of them do not draw alike."""
    if rounding_seed < 0 or update.position >= 0:
        return rounding_seed
    place = (update.group << 32) + update.param_index
    return (rounding_seed + place * 0x9E3779B97F4A7C15) & _SEED_MASK
