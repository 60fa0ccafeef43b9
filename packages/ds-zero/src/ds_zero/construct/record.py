"""Build a model without its memory, and make its values one parameter at a time, as plain construction would have."""

from __future__ import annotations

import contextlib
import enum
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ds_core.errors import ModelError
from ds_zero.construct.modes import DispatchMode, FunctionMode
from ds_zero.construct.operators import Operators
from ds_zero.construct.replay import run
from ds_zero.construct.steps import Cell, Ref

__all__ = ["Recording"]

OnReal = Callable[[nn.Module, str, nn.Parameter], "nn.Parameter | None"]


_ACTIVE: ContextVar[Recording | None] = ContextVar("ds_zero_recording", default=None)


class _Phase(enum.Enum):
    NEW = "not entered"
    RECORDING = "recording"
    RECORDED = "recorded"
    REPLAYED = "replayed"


class Recording:
    """A context in which modules are built without memory; `replay` then gives every parameter its values.

    Inside, factories and random operators give hollow tensors (Note [Hollow tensors] in steps.py) and every operator on
    them is noted instead of run. No random number is drawn. Operators on real tensors run as always. Where the
    constructor asks for a value (`.item()`, `if tensor.any()`, `.tolist()`, `.numpy()`), the steps it depends on run
    there and then, with the numbers plain construction would have drawn, and are thrown away.

    Between leaving the context and the end of the replay nothing may touch the model's values: its tensors have no
    memory, and torch does not check that. Leaving with an exception drops the log and leaves tensors with undefined
    values.

    Example:
        >>> with Recording() as recording:
        ...     model = Model()
        >>> for parameter, value in recording.replay():
        ...     parameter.data = my_shard_of(value)
    """

    def __init__(self) -> None:
        self._operators: Operators = Operators()
        self._phase: _Phase = _Phase.NEW
        self._parameters: dict[int, weakref.ref[nn.Parameter]] = {}
        self._modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._on_real: OnReal | None = None
        self._given: dict[int, weakref.ref[nn.Parameter]] = {}
        self._thread: int = 0
        self._leave: contextlib.ExitStack = contextlib.ExitStack()

    @staticmethod
    def active() -> Recording | None:
        """The recording that is open in this thread, or None."""
        return _ACTIVE.get()

    def on_real_parameter(self, callback: OnReal) -> None:
        """Call `callback(module, name, parameter)` when a real parameter takes the place of a meta one.

        That is how loaders (transformers' `from_pretrained` among them) fill a model they built on the meta device:
        one parameter at a time. The callback can shard it there and then by setting `parameter.data`, so that the rest
        of its values is freed, or return another parameter to register instead. It is called once for each parameter;
        such parameters are not part of `replay`. Parameters that a constructor makes real (`torch.tensor`) are not
        reported here, since later lines may still change them: `replay` yields those.
        """
        self._on_real = callback

    def __enter__(self) -> Recording:
        if self._phase is not _Phase.NEW:
            raise ModelError(f"a Recording is used once and this one is {self._phase.value}; make a new Recording")
        if _ACTIVE.get() is not None:
            raise ModelError("a Recording is open already, and recordings do not nest; use the open one")
        self._phase = _Phase.RECORDING
        self._thread = threading.get_ident()
        parameter_hook = register_module_parameter_registration_hook(self._parameter_registered)
        module_hook = register_module_module_registration_hook(self._module_registered)
        self._operators.begin()
        function_mode, dispatch_mode = FunctionMode(self._operators, self._found), DispatchMode(self._operators)
        token = _ACTIVE.set(self)
        self._leave.callback(_ACTIVE.reset, token)
        self._leave.callback(self._operators.end)
        self._leave.callback(parameter_hook.remove)
        self._leave.callback(module_hook.remove)
        self._leave.enter_context(function_mode)
        self._leave.enter_context(dispatch_mode)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.close()
        if error is None:
            self._phase = _Phase.RECORDED
        else:
            self._phase = _Phase.REPLAYED
            self._operators.give_up()

    def replay(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """Yield each parameter with its full value, complete and bit-equal to plain construction.

        The global generator is advanced exactly as plain construction would have. Before asking for the next parameter,
        set ``parameter.data`` to what is to be kept of the value, and let go of the value. Tensors that are still
        on the recording's storage then (the parameter itself if nothing was set, or aliases of it) are filled with the
        value, so they are never left hollow. Buffers and other tensors are filled as their values come along; they
        keep their aliases among each other. Run the iterator to its end.

        A parameter may be yielded before another of an earlier module: the order is that of last writes. Two
        parameters on one storage are yielded one after the other.

        Raises:
            ModelError: nothing was recorded, or it was replayed already.
        """
        if self._phase is not _Phase.RECORDED:
            raise ModelError(f"replay() needs a recording that ended without error; this one is {self._phase.value}")
        self._phase = _Phase.REPLAYED
        return self._replay()

    def _replay(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        operators, self._operators = self._operators, Operators()
        owners: dict[int, list[weakref.ref[nn.Parameter]]] = {}
        for reference in self._known_parameters():
            parameter = reference()
            if parameter is None or parameter.is_meta or nn.parameter.is_lazy(parameter):
                continue
            cell = operators.cell_of(parameter)
            if cell is not None:
                owners.setdefault(cell.index, []).append(reference)
            elif id(parameter) not in self._given:
                yield parameter, parameter.detach()
        parameter = None
        log, plan = operators.log, operators.full_plan()
        del operators
        for index, storage in run(log, plan, 0, {}):
            cell = log.cells[index]
            cell.base = None
            for reference in owners.get(index, ()):
                parameter = reference()
                if parameter is not None:
                    yield parameter, Ref.of(index, parameter).on(storage)
            parameter = None
            _fill(cell, storage)

    def _known_parameters(self) -> list[weakref.ref[nn.Parameter]]:
        """Parameters that were registered, and those that came into registered modules by copying a module."""
        for module in list(self._modules):
            for parameter in module.parameters():
                self._found(parameter)
        return list(self._parameters.values())

    def _found(self, parameter: nn.Parameter) -> None:
        known = self._parameters.get(id(parameter))
        if known is None or known() is not parameter:
            self._parameters[id(parameter)] = weakref.ref(parameter)

    def _module_registered(self, module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        """The hook torch calls for every module registered on any module."""
        if submodule is not None and threading.get_ident() == self._thread:
            self._modules.add(submodule)

    def _parameter_registered(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        """The hook torch calls for every parameter registered on any module."""
        if parameter is None or threading.get_ident() != self._thread:
            return None
        self._found(parameter)
        previous = module._parameters.get(name)
        loading = previous is not None and previous.is_meta and not parameter.is_meta
        if self._on_real is None or not loading or self._operators.cell_of(parameter) is not None:
            return None
        given = self._given.get(id(parameter))
        if given is not None and given() is parameter:
            return None
        self._given[id(parameter)] = weakref.ref(parameter)
        with self._operators.paused(), torch._C.DisableTorchFunction():
            replacement = self._on_real(module, name, parameter)
        if replacement is not None:
            self._given[id(replacement)] = weakref.ref(replacement)
        return replacement


def _fill(cell: Cell, storage: torch.UntypedStorage) -> None:
    """Give what is still on a recorded storage the bytes of `storage`."""
    target = cell.storage()
    if target is not None and target._cdata != storage._cdata:
        target.resize_(cell.nbytes)
        target.copy_(storage)
