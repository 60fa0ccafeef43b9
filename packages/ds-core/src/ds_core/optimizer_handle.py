"""What ``initialize`` returns as the optimizer: the familiar surface over the optimizer the engine drives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ds_core.errors import EngineError

if TYPE_CHECKING:
    from ds_core.engine import Engine
    from ds_core.parts import LossScale

__all__ = ["OptimizerHandle"]


class OptimizerHandle:
    """Parameter groups and state of the inner optimizer, and the loss scale; stepping goes through the engine.

    Attributes:
        optimizer: the inner torch optimizer. Its parameters are what this rank updates (see `ds_core.masters`).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, loss_scale: LossScale) -> None:
        self.optimizer: torch.optim.Optimizer = optimizer
        self._loss_scale = loss_scale
        self._engine: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Lets ``step`` and ``backward`` go through `engine`."""
        object.__setattr__(self, "_engine", engine)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's groups; hyperparameters may be changed in place."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        """The inner optimizer's state."""
        return self.optimizer.state

    @property
    def loss_scale(self) -> float:
        """Current loss scale; 1 without fp16."""
        return self._loss_scale.scaler.scale

    cur_scale = loss_scale

    @property
    def overflow(self) -> bool:
        """True when the last step was skipped because gradients overflowed."""
        return self._loss_scale.overflow

    def _driver(self) -> Engine:
        if self._engine is None:
            raise EngineError("this optimizer handle belongs to no engine any more")
        return self._engine

    def step(self, closure: None = None) -> None:
        """Same as ``engine.step()``."""
        if closure is not None:
            raise EngineError("a closure cannot be re-evaluated by the engine; call engine.backward and engine.step")
        self._driver().step()

    def backward(self, loss: torch.Tensor, retain_graph: bool = False) -> torch.Tensor:
        """Same as ``engine.backward(loss)``."""
        return self._driver().backward(loss, retain_graph=retain_graph)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Same as ``engine.zero_grad()``."""
        self._driver().zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """This rank's share of the inner optimizer's state; ``engine.save_checkpoint`` saves all of it."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave on the same rank of an equal run."""
        self.optimizer.load_state_dict(state_dict)
