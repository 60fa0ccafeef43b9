"""Position: the training loader and random generators, so that a resumed run sees what the first would have seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ds_core import generators
from ds_core.data import DistributedLoader
from ds_core.data.state import check_state
from ds_core.part import Part
from ds_core.state import Fragment, StatePlan, StateReader

if TYPE_CHECKING:
    from ds_core.accelerator import Accelerator
    from ds_core.build import Build

__all__ = ["Position"]


class Position(Part):
    """Makes the loader of ``training_data`` and keeps its place, and the random state of every rank."""

    name = "position"
    after = ("weights",)

    def __init__(self) -> None:
        self.loader: DistributedLoader | None = None
        self._accelerator: Accelerator | None = None
        self._rank = 0

    def prepare(self, build: Build) -> None:
        """Builds the loader where there is data."""
        self._accelerator, self._rank = build.accelerator, build.rank
        training = build.config.training
        if training.seed is not None:
            # Ranks draw different dropout masks; where the data differs, so may the noise.
            generators.begin(training.seed + self._rank, build.accelerator)
        if build.training_data is None:
            return
        self.loader = build.loader = DistributedLoader(
            build.training_data,
            batch_size=build.config.batch.micro_batch_size,
            rank=build.mesh.rank(*build.mesh.batch_axes),
            ranks=build.mesh.size(*build.mesh.batch_axes),
            collate_fn=build.collate_fn,
            drop_last=training.dataloader_drop_last,
            seed=training.seed or 0,
        )

    def state_plan(self) -> StatePlan:
        """The loader's position (the same on every rank) and this rank's random states."""
        plan = StatePlan()
        if self.loader is not None:
            plan.values["data"] = self.loader.state_dict()
        for name, state in generators.collect(self._accelerator).items():
            plan.fragments.append(Fragment(f"random/{name}/{self._rank}", (state.numel(),), 0, state.numel(), state))
        return plan

    def check_state(self, reader: StateReader) -> None:
        """Refuses the position in other data.

        Raises:
            DataError: the order of samples was another one.
        """
        state = reader.value("data")
        if self.loader is not None and state is not None:
            check_state(state, self.loader.state_dict())

    def load_state(self, reader: StateReader) -> None:
        """Restores the position, and random states; a generator without one begins a stream of its own."""
        state = reader.value("data")
        if self.loader is not None and state is not None:
            self.loader.load_state_dict(state)
        known = set(reader.keys())
        unknown = []
        for name, current in generators.collect(self._accelerator).items():
            key = f"random/{name}/{self._rank}"
            if key in known and reader.shape(key) == (current.numel(),):
                generators.restore(name, _bytes(reader, key), self._accelerator)
            else:
                unknown.append(name)
        first = f"random/{generators.HOST}/0"
        if first in known:
            generators.seed_anew(unknown, _bytes(reader, first), self._rank, self._accelerator)


def _bytes(reader: StateReader, key: str) -> torch.Tensor:
    values = torch.empty(reader.shape(key)[0], dtype=torch.uint8)
    reader.read(key, values)
    return values
