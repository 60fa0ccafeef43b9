"""Decides for each operator a constructor calls: run it, note it, or work out its value now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ds_core.errors import ModelError
from ds_zero.construct.plan import Plan, plan
from ds_zero.construct.replay import change_state, run
from ds_zero.construct.rng import Back, Change, Draws, States, snapshot
from ds_zero.construct.steps import Blank, Cell, Log, Ref, Step, Traits, map_tensors, refs_in, traits_of

__all__ = ["Operators"]

# What an operator raises on meta tensors when it has no meta kernel, needs values, or is called wrongly.
_META_ERRORS = (RuntimeError, IndexError, ValueError, TypeError)
_KEPT_STATES = 16


class Operators:
    """The log, the storages it knows, and the state of the random stream while recording."""

    def __init__(self) -> None:
        self.log: Log = Log()
        self._cells: dict[int, Cell] = {}  # by address of the storage; the cell's weak reference keeps it unique
        self._held: dict[int, Cell] = {}  # real storages the log reads from
        self._draws: Draws | None = None
        self._paused: bool = False
        self._states: dict[int, States] = {}  # generator states by number of draws, from earlier evaluations

    def begin(self) -> None:
        """Start noting draws; the generator's state belongs to the recording until `end`."""
        self._draws = Draws()
        self.log.generators[torch.default_generator] = None

    def end(self) -> None:
        """Note what was last done to the generator and give it back as it was."""
        if self._draws is not None:
            for change in self._draws.changes():
                self._note_change(self._draws, change)
            self._draws.end()
            self._draws = None

    def give_up(self) -> None:
        """Give what is left of a failed construction its size, untouched, so that showing it in a traceback is safe."""
        for cell in self._cells.values():
            storage = cell.storage()
            if storage is not None and cell.base is None:
                storage.resize_(cell.nbytes)
        self.log, self._cells, self._held = Log(), {}, {}

    def cell_of(self, tensor: torch.Tensor) -> Cell | None:
        """The recorded cell a tensor is on, or None for a real, meta or sparse tensor."""
        if tensor.layout is not torch.strided or tensor.is_meta:
            return None
        return self._cells.get(tensor.untyped_storage()._cdata)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Operators inside run as if nothing were recorded; they must not touch recorded tensors."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def full_plan(self) -> Plan:
        """The plan that draws everything and makes every cell some tensor is still on."""
        return plan(self.log, [cell.index for cell in self._cells.values() if not cell.weak.expired()], 0)

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the constructor gets from calling operator `func`."""
        if self._paused:
            return func(*args, **kwargs)
        traits = traits_of(func)
        tensors = list(refs_in((args, kwargs), torch.Tensor))
        recorded = [tensor for tensor in tensors if self.cell_of(tensor) is not None]
        to_meta = _is_meta(kwargs.get("device"))
        if not recorded:
            return self._without_recorded(func, traits, args, kwargs, tensors, to_meta)
        if traits.in_place_view or traits.view:
            return self._view(func, args, kwargs, recorded)
        if not traits.gives_tensors:
            return self._now(func, traits, args, kwargs)
        if to_meta or (not traits.like and any(tensor.is_meta for tensor in tensors)):
            return func(*self._on_meta(args, {}), **self._on_meta(kwargs, {}))
        return self._note(func, traits, args, kwargs)

    def evaluate(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Real copies of recorded tensors: the steps they depend on run now, their other results are thrown away."""
        refs = []
        for tensor in tensors:
            cell = self.cell_of(tensor)
            if cell is None:
                raise AssertionError(f"a tensor of shape {tuple(tensor.shape)} is not recorded")
            refs.append(Ref.of(cell.index, tensor))
        draws, todo = self._start(refs)
        found: dict[int, torch.UntypedStorage] = {}
        marked = snapshot(self.log.generators)
        try:
            for generator, state in self._states_at(draws).items():
                generator.set_state(state)
            for index, storage in run(self.log, todo, draws, {0: self._states_at(0)}):
                found[index] = storage
            if any(self.log.steps[action.step].random for action in todo.actions):
                self._states[len(self.log.randoms)] = snapshot(self.log.generators)
        finally:
            for generator, state in marked.items():
                generator.set_state(state)
        while len(self._states) > _KEPT_STATES:
            del self._states[min(self._states)]
        return [ref.on(found[ref.cell]).clone() for ref in refs]

    def _states_at(self, draws: int) -> States:
        """The states generators had after `draws` draws; one that had drawn nothing then is as it was outside."""
        outside = self._draws.outside() if self._draws is not None else {}
        return outside | self._states.get(draws, {})

    def _start(self, refs: list[Ref]) -> tuple[int, Plan]:
        """The latest known generator state an evaluation can begin from, and its plan."""
        randoms, steps = self.log.randoms, self.log.steps
        wanted = [ref.cell for ref in refs]
        for draws in (len(randoms), *sorted(self._states, reverse=True), 0):
            first = randoms[draws] if draws < len(randoms) else len(steps)
            todo = plan(self.log, wanted, first)
            used = [action.step for action in todo.actions if steps[action.step].random]
            goals = [steps[index].args[0] for index in used if steps[index].run is change_state]
            returns = [goal.draws for goal in goals if isinstance(goal, Back)]
            if not used or (min(used) >= first and min(returns, default=draws) >= draws):
                return draws, todo
        raise AssertionError("an evaluation from the first draw on needs an earlier one")

    def _without_recorded(
        self,
        func: Any,
        traits: Traits,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
        to_meta: bool,
    ) -> Any:
        """An operator no recorded tensor takes part in."""
        factory = traits.takes_device and all(tensor.is_meta for tensor in tensors)
        if tensors and factory:  # `empty_like` of a meta tensor has real memory if a real device is named
            factory = traits.like and kwargs.get("device") is not None
        if factory and not to_meta:
            return self._note(func, traits, args, kwargs)
        if to_meta or not tensors or any(tensor.is_meta or _has_own_dispatch(tensor) for tensor in tensors):
            return func(*args, **kwargs)
        if traits.random:
            for tensor in traits.written_of(args, kwargs):
                self._adopt(tensor)
            return self._note(func, traits, args, kwargs)
        for tensor in traits.written_of(args, kwargs):
            self._release(tensor)
        return func(*args, **kwargs)

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], recorded: list[torch.Tensor]) -> Any:
        """An operator that only looks at a storage differently: it runs, on storages that have their size meanwhile."""
        with self._sized(recorded):
            return func(*args, **kwargs)

    @contextmanager
    def _sized(self, tensors: list[torch.Tensor]) -> Iterator[None]:
        """Give hollow storages their size, untouched, so that torch's bounds checks pass."""
        hollow = []
        for tensor in tensors:
            storage, cell = tensor.untyped_storage(), self.cell_of(tensor)
            if cell is not None and cell.base is None:
                storage.resize_(cell.nbytes)
                hollow.append((storage, cell))
        try:
            yield
        finally:
            for storage, cell in hollow:
                cell.nbytes = max(cell.nbytes, storage.nbytes())
                storage.resize_(0)

    def _note(self, func: Any, traits: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add an operator to the log and return what it would: its own arguments, or hollow tensors."""
        twins: dict[int, torch.Tensor] = {}
        meta_args, meta_kwargs = self._on_meta(args, twins), self._on_meta(kwargs, twins)
        if traits.takes_device:
            meta_kwargs["device"] = torch.device("meta")
        meta_kwargs.pop("pin_memory", None)
        if "generator" in meta_kwargs:
            meta_kwargs["generator"] = None
        try:
            results = func(*meta_args, **meta_kwargs)
        except _META_ERRORS:
            return self._now(func, traits, args, kwargs)
        for tensor in traits.written_of(args, kwargs):  # a real tensor that gets values only the replay will know
            if self.cell_of(tensor) is None:
                self._adopt(tensor)
        originals = {id(twin): original for original, twin in self._pairs(args, kwargs, twins)}
        device = self._device(args, kwargs)
        outs: list[Ref | None] = []

        def result(meta: torch.Tensor) -> torch.Tensor:
            if id(meta) in originals:
                outs.append(None)
                return originals[id(meta)]
            tensor, ref = self._hollow(meta, device, func)
            outs.append(ref)
            return tensor

        answer = map_tensors(result, results)
        if not traits.empty:
            self._add(func, traits, args, kwargs, tuple(outs), device)
        return answer

    def _add(
        self,
        func: Any,
        traits: Traits,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outs: tuple[Ref | None, ...],
        device: torch.device,
    ) -> None:
        if traits.takes_device:
            kwargs = kwargs | {"device": device}
        make: Callable[[torch.Tensor], Any] = self._blank if traits.like else self._ref
        written = traits.written_of(args, kwargs)
        writes = tuple(self._ref(tensor) for tensor in written)
        ids = {id(tensor) for tensor in written}
        inputs = [tensor for tensor in refs_in((args, kwargs), torch.Tensor) if id(tensor) not in ids]
        reads = frozenset(() if traits.like else (self._ref(tensor).cell for tensor in inputs))
        args, kwargs = map_tensors(make, args), map_tensors(make, kwargs)
        blind = traits.blind and len(writes) == 1
        generator = self._generator_of(traits, kwargs, device) if traits.random else None
        dtype = torch.get_default_dtype()
        step = Step(func, args, kwargs, reads, writes, outs, blind, traits.random, dtype)
        draws = self._draws
        if draws is None or generator is None:
            self.log.add(step)
            return
        draws.follow(generator)
        self.log.generators[generator] = None
        change = draws.change(generator)
        if change is not None:
            self._note_change(draws, change)
        self.log.add(step)
        draws.drawn(generator)

    @staticmethod
    def _generator_of(traits: Traits, kwargs: dict[str, Any], device: torch.device) -> torch.Generator:
        generator: torch.Generator | None = kwargs.get("generator")
        if generator is None and device.type != "cpu":
            raise ModelError(
                f"random numbers drawn on {device} cannot be recorded; construct on the CPU, or construct the model "
                "plainly and shard the existing module instead"
            )
        return torch.default_generator if generator is None else generator

    def _note_change(self, draws: Draws, change: Change) -> None:
        empty: frozenset[int] = frozenset()
        self.log.add(Step(change_state, (change,), {}, empty, (), (), False, True, torch.get_default_dtype()))
        draws.drawn(change.generator)

    def _now(self, func: Any, traits: Traits, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator whose result is needed now, or that meta tensors cannot stand in for, on real copies."""
        recorded = [tensor for tensor in refs_in((args, kwargs), torch.Tensor) if self.cell_of(tensor) is not None]
        real = dict(zip(map(id, recorded), self.evaluate(recorded), strict=True))

        def value(tensor: torch.Tensor) -> torch.Tensor:
            return real.get(id(tensor), tensor)

        if traits.random or any(id(tensor) in real for tensor in traits.written_of(args, kwargs)):
            marked = snapshot(self.log.generators)
            try:  # on copies, for the error plain construction would have raised
                func(*map_tensors(torch.clone, map_tensors(value, args)), **map_tensors(value, kwargs))
            finally:
                for generator, state in marked.items():
                    generator.set_state(state)
            raise ModelError(
                f"{func} cannot be recorded: torch has no shape rule for it. Construct the model plainly and shard the "
                "existing module instead"
            )
        return func(*map_tensors(value, args), **map_tensors(value, kwargs))

    def _on_meta(self, value: Any, twins: dict[int, torch.Tensor]) -> Any:
        """`value` with every tensor replaced by a meta tensor of the same geometry, the same one each time."""

        def twin(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in twins:
                size, stride = tensor.shape, tensor.stride()
                twins[id(tensor)] = torch.empty_strided(size, stride, dtype=tensor.dtype, device="meta")
            return twins[id(tensor)]

        return map_tensors(twin, value)

    @staticmethod
    def _pairs(
        args: tuple[Any, ...], kwargs: dict[str, Any], twins: dict[int, torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for tensor in refs_in((args, kwargs), torch.Tensor):
            yield tensor, twins[id(tensor)]

    def _hollow(self, meta: torch.Tensor, device: torch.device, func: Any) -> tuple[torch.Tensor, Ref]:
        """A new hollow tensor with the geometry of `meta`."""
        if meta.layout is not torch.strided:
            raise ModelError(
                f"{func} makes a {meta.layout} tensor, which cannot be recorded. Construct the model plainly and shard "
                "the existing module instead"
            )
        size, stride = tuple(meta.shape), tuple(meta.stride())
        tensor = torch.empty_strided(size, stride, dtype=meta.dtype, device=device)
        storage = tensor.untyped_storage()
        cell = self.log.new_cell(storage, storage.nbytes())
        self._cells[storage._cdata] = cell
        storage.resize_(0)
        return tensor, Ref.of(cell.index, tensor)

    def _device(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
        """Where an operator's results are."""
        if kwargs.get("device") is not None:
            return torch.device(kwargs["device"])
        tensors = [tensor for tensor in refs_in((args, kwargs), torch.Tensor) if not tensor.is_meta]
        tensors.sort(key=lambda tensor: tensor.dim() == 0)  # a scalar tensor follows the device of the others
        return tensors[0].device if tensors else torch.device("cpu")

    def _ref(self, tensor: torch.Tensor) -> Ref:
        cell = self.cell_of(tensor)
        return Ref.of((cell or self._hold(tensor)).index, tensor)

    @staticmethod
    def _blank(tensor: torch.Tensor) -> Blank:
        return Blank(Ref.of(-1, tensor))

    def _hold(self, tensor: torch.Tensor) -> Cell:
        """The cell of a real tensor the log reads."""
        storage = tensor.untyped_storage()
        cell = self._held.get(storage._cdata)
        if cell is None:
            cell = self._held[storage._cdata] = self.log.new_cell(storage, storage.nbytes())
            cell.base = storage
        return cell

    def _release(self, tensor: torch.Tensor) -> None:
        """A real tensor is about to change: what the log reads is what it holds now."""
        if tensor.layout is torch.strided and not tensor.is_meta:
            cell = self._held.pop(tensor.untyped_storage()._cdata, None)
            if cell is not None and cell.base is not None:
                cell.base = cell.base.clone()

    def _adopt(self, tensor: torch.Tensor) -> None:
        """A real tensor gets values only the replay will know: from here on it is recorded."""
        cell = self._hold(tensor)
        address = tensor.untyped_storage()._cdata
        del self._held[address]
        self._cells[address] = cell


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _has_own_dispatch(tensor: torch.Tensor) -> bool:
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
