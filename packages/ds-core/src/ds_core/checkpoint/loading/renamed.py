"""`Renamed`: a checkpoint as one module sees it, by the module's names and with what a load may leave out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ds_core.checkpoint.loading.policy import LoadPolicy
from ds_core.checkpoint.source import Source
from ds_core.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["Names", "Renamed", "names_of"]

MODEL = "model/"
OPTIMIZER = "optimizer/"
SCALARS = "optimizer_scalars"


class Names(NamedTuple):
    """What a module calls its tensors.

    Attributes:
        aliases: all names of each parameter and persistent buffer, by its first.
        frozen: parameters that are not trained.
        transient: buffers that are no state.
    """

    aliases: dict[str, list[str]]
    frozen: frozenset[str]
    transient: frozenset[str]


def names_of(module: torch.nn.Module) -> Names:
    """The names of `module`, where a tied parameter has several."""
    first: dict[int, str] = {id(parameter): name for name, parameter in module.named_parameters()}
    aliases: dict[str, list[str]] = {name: [] for name in first.values()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases[first[id(parameter)]].append(name)
    transient = set()
    for prefix, owner in module.named_modules():
        for name, _ in owner.named_buffers(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if name in owner._non_persistent_buffers_set:
                transient.add(full)
            else:
                aliases[full] = [full]
    frozen = frozenset(name for name, parameter in module.named_parameters() if not parameter.requires_grad)
    return Names(aliases, frozen, frozenset(transient))


class Renamed:
    """A `ds_core.state.StateReader` over a source, whose names are those of a module.

    A tied parameter is found under any of its names, the first that the checkpoint has.

    Attributes:
        source: the checkpoint.
        policy: renaming, and what may be missing or left over.
        unclaimed: the checkpoint's names of parameters and buffers that no name of the module stands for; buffers that
            the module calls no state are not among them.

    Raises:
        CheckpointError: two names of the module stand for one of the checkpoint.
    """

    def __init__(self, source: Source, names: Names, policy: LoadPolicy | None = None) -> None:
        self.source: Source = source
        self.policy: LoadPolicy = policy or LoadPolicy()
        self._names: Names = names
        self._scalars: dict[str, Any] = source.value(SCALARS) or {}
        keys = list(source.keys())
        there = dict.fromkeys([*(name for key in keys if (name := _name(key)) is not None), *self._scalars])
        everything = [alias for aliases in names.aliases.values() for alias in aliases]
        targets = self.policy.renamed([*everything, *names.transient])
        _refuse_collisions(names, targets)
        self._own: dict[str, str] = {}
        """The module's name of a name of the checkpoint."""
        claimed = {targets[name] for name in (*everything, *names.transient)}
        for first, aliases in names.aliases.items():
            found = next((targets[alias] for alias in aliases if targets[alias] in there), None)
            if found is not None:
                self._own[found] = first
        self.unclaimed: Sequence[str] = [name for name in there if name not in claimed]
        self._keys: dict[str, str] = {}
        """The checkpoint's keys by those with the module's names."""
        for key in keys:
            name = _name(key)
            if name is None:
                self._keys[key] = key
            elif name in self._own:
                self._keys[key.removesuffix(name) + self._own[name]] = key

    def may_lack(self, name: str) -> bool:
        """See `ds_core.state.StateReader`."""
        is_frozen = name in self._names.frozen
        return any(self.policy.may_lack(alias, is_frozen=is_frozen) for alias in self._names.aliases.get(name, [name]))

    def may_have(self, name: str) -> bool:
        """See `ds_core.state.StateReader`."""
        return self.policy.may_have(name)

    def keys(self) -> Sequence[str]:
        """Logical tensors that somebody may want, by the module's names."""
        return list(self._keys)

    def shape(self, key: str) -> tuple[int, ...]:
        """Logical shape of `key`."""
        return self.source.shape(self._keys[key])

    def dtype(self, key: str) -> torch.dtype:
        """The dtype `key` was saved in."""
        return self.source.dtype(self._keys[key])

    def read(self, key: str, out: torch.Tensor, start: int = 0) -> None:
        """Fills 1-D `out` from element `start` of `key` on, cast to its dtype."""
        self.source.read(self._keys[key], out, start)

    def value(self, name: str, default: Any = None) -> Any:
        """A JSON value saved under `name`; those of optimizers by the module's names."""
        if name == SCALARS and self._scalars:
            return {self._own[there]: value for there, value in self._scalars.items() if there in self._own}
        return self.source.value(name, default)

    def module_state(self) -> dict[str, torch.Tensor]:
        """All parameters and buffers, full, by the module's names where it has them, else by the checkpoint's."""
        found = {}
        for key in list(self.source.keys()):
            if key.startswith(MODEL):
                name = key.removeprefix(MODEL)
                found[self._own.get(name, name)] = self.source.full(key)
        return found


def _name(key: str) -> str | None:
    """The parameter or buffer that a logical tensor belongs to, or None."""
    if key.startswith(MODEL):
        return key.removeprefix(MODEL)
    if key.startswith(OPTIMIZER):
        return key.split("/", 2)[2]
    return None


def _refuse_collisions(names: Names, targets: dict[str, str]) -> None:
    owners: dict[str, str] = {}
    for first, aliases in names.aliases.items():
        for alias in aliases:
            owner = owners.setdefault(targets[alias], first)
            if owner != first:
                raise CheckpointError(
                    f"rename gives {targets[alias]!r} of the checkpoint to both {owner!r} and {first!r} of the model; "
                    "one tensor can be loaded into one parameter"
                )
