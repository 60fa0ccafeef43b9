"""The part that knows the loads of all experts over all ranks: metrics for monitors, and biases that even loads out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ds_core import comm
from ds_core.part import Part, Update
from ds_moe.gate import TopKGate
from ds_moe.load import Load, LoadReport

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.holdings import Replicas

__all__ = ["MoeBalance", "mean_rows"]

_PREFIX = "Train/MoE/"


class MoeBalance(Part):
    """Adds loads up over ranks once a step, where a monitor or a bias asks for them.

    Metrics are means over layers: the share of each expert (layers with one number of experts), the busiest expert in
    even shares; and of gates of ours the share of pairs dropped, the balancing and z losses and the entropy.

    Attributes:
        reports: what the gates saw in the last step, by the names of the modules that have them.
    """

    name = "moe_balance"
    after = ("reporting",)

    def __init__(self) -> None:
        self.reports: dict[str, LoadReport] = {}
        self._loads: dict[str, Load] = {}
        self._gates: dict[str, TopKGate] = {}
        self._batch: Replicas | None = None
        self._device = torch.device("cpu")
        self._counts: dict[str, torch.Tensor] = {}
        self._is_monitored = False

    def prepare(self, build: Build) -> None:
        """Listens to the gates that somebody asks about."""
        self._batch = build.mesh.replicas(*build.mesh.batch_axes)
        self._device = build.device
        self._is_monitored = build.is_monitored
        for name, module in build.module.named_modules():
            load = getattr(module, "load", None)
            if not isinstance(load, Load):
                continue
            if isinstance(module, TopKGate) and module.bias_steps is not None:
                self._gates[name] = module
            if build.is_monitored or name in self._gates:
                self._loads[name] = load
        self._listen(True)

    def before_backward(self) -> None:
        """Turns a deaf ear: what is computed again in backward was counted in forward."""
        self._listen(False)

    def after_backward(self) -> None:
        """Listens again."""
        self._listen(True)

    def before_update(self, update: Update) -> None:
        """Adds loads up over the ranks of the batch."""
        if not self._loads or self._batch is None:
            return
        sums = torch.cat([load.take(self._device) for load in self._loads.values()])
        if self._batch.ranks > 1:
            with comm.scope("moe_balance"):
                comm.all_reduce(sums, group=self._batch.group)
        pieces = dict(zip(self._loads, sums.split([load.size for load in self._loads.values()]), strict=True))
        self._counts = {name: pieces[name][: gate.num_experts] for name, gate in self._gates.items()}
        if self._is_monitored:
            self.reports = {name: load.read(pieces[name].tolist()) for name, load in self._loads.items()}

    def after_update(self, update: Update) -> None:
        """Moves biases, unless the step was left out."""
        counts, self._counts = self._counts, {}
        if update.skip_reason is None:
            for name, of_experts in counts.items():
                self._gates[name].update_bias(of_experts)

    def metrics(self, update: Update) -> Iterable[tuple[str, float]]:
        """Means over layers; see the class."""
        return [(_PREFIX + name, value) for name, value in mean_rows(list(self.reports.values()))]

    def close(self) -> None:
        """Stops listening."""
        self._listen(False)

    def _listen(self, is_heard: bool) -> None:
        for load in self._loads.values():
            load.is_heard = is_heard


def mean_rows(reports: list[LoadReport]) -> list[tuple[str, float]]:
    """Names and values of what several layers saw."""
    if not reports:
        return []

    def mean(values: Iterable[float]) -> float:
        listed = list(values)
        return sum(listed) / len(listed)

    rows = [("max_over_mean_load", mean(report.max_over_mean for report in reports))]
    gates = [report for report in reports if report.is_of_gate]
    if gates:
        rows += [
            ("dropped_share", mean(report.dropped_share for report in gates)),
            ("balance_loss", mean(report.balance for report in gates)),
            ("z_loss", mean(report.z for report in gates)),
            ("gate_entropy", mean(report.entropy for report in gates)),
        ]
    sizes = {len(report.counts) for report in reports}
    for expert in range(sizes.pop()) if len(sizes) == 1 else ():
        shares = [report.counts[expert] / max(sum(report.counts), 1) for report in reports]
        rows.append((f"load_share/expert_{expert}", mean(shares)))
    return rows
