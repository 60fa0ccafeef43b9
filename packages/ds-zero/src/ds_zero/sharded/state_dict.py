"""``module.state_dict()`` and ``load_state_dict()`` of a sharded module, with unsharded names and shapes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import nn

from ds_zero.gathered import GatheredParameters, full_values

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from ds_zero.sharded.space import PartitionedSpace

__all__ = ["StateDictHooks"]


class StateDictHooks:
    """Gathers around ``state_dict`` and ``load_state_dict`` of any module in the tree. Call those on all ranks.

    The tensors of a state dict stay full: they keep the buffers they are views of. Hooks are on every module that has
    children or parameters; the outermost call gathers, calls inside it find everything whole.
    """

    def __init__(self, root: nn.Module, space: PartitionedSpace) -> None:
        self._space = space
        self._handles: list[RemovableHandle] = []
        self._depth = 0
        self._stack = ExitStack()
        for module in root.modules():
            self._handles += [
                module.register_state_dict_pre_hook(self._before_save),
                module.register_state_dict_post_hook(lambda *args: self._leave()),  # torch marks the hook: no method
                module.register_load_state_dict_pre_hook(self._before_load),
                module.register_load_state_dict_post_hook(self._after_load),
            ]

    def _before_save(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        self._depth += 1
        if self._depth == 1:
            self._stack = ExitStack()
            self._stack.enter_context(full_values(self._space, list(module.parameters())))

    def _before_load(self, module: nn.Module, *args: Any) -> None:
        self._depth += 1
        if self._depth == 1:
            self._stack = ExitStack()
            self._stack.enter_context(GatheredParameters(module))

    def _after_load(self, module: nn.Module, *args: Any) -> None:
        self._leave()

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._stack.close()

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
