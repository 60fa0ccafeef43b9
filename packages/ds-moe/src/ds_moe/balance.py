"""The part that knows the loads of all experts over all ranks: metrics for monitors, and biases that even loads out.

Note [All stages]
    Which layers other stages have is asked once, when the engine is built. From then on every rank brings numbers for
    all layers, zeros for those of others, and one sum over batch and stages together has them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ds_core import comm
from ds_core.part import Part, Update
from ds_moe.gate import TopKGate
from ds_moe.load import Load, LoadReport

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ds_core.build import Build
    from ds_core.holdings import Replicas

__all__ = ["MoeBalance", "mean_rows"]

_PREFIX = "Train/MoE/"


class MoeBalance(Part):
    """Adds loads up over ranks once a step, where a monitor or a bias asks for them.

    With a monitor that is over all stages of a pipeline, too, for one rank writes; see Note [All stages].

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
        self._together: Replicas | None = None
        """Ranks whose loads are added up."""
        self._added: dict[str, Load] = {}
        """Loads by name, of all these ranks; those of other stages are silent."""
        self._device = torch.device("cpu")
        self._counts: dict[str, torch.Tensor] = {}
        self._is_monitored = False

    def prepare(self, build: Build) -> None:
        """Listens to the gates that somebody asks about."""
        axes = (*build.mesh.batch_axes, *(["pipe"] if build.is_monitored else []))
        self._together = build.mesh.replicas(*axes)
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
        self._added = self._loads
        if build.is_monitored and build.mesh.size("pipe") > 1:
            self._added = _of_all_stages(self._loads, build.mesh.group("pipe"))
        self._listen(True)

    def before_backward(self) -> None:
        """Turns a deaf ear: what is computed again in backward was counted in forward."""
        self._listen(False)

    def after_backward(self) -> None:
        """Listens again."""
        self._listen(True)

    def before_update(self, update: Update) -> None:
        """Adds loads up over the ranks of the batch, and of all stages where a monitor wants them."""
        if not self._added or self._together is None:
            return
        sums = torch.cat([load.take(self._device) for load in self._added.values()])
        if self._together.ranks > 1:
            with comm.scope("moe_balance"):
                comm.all_reduce(sums, group=self._together.group)
        pieces = dict(zip(self._added, sums.split([load.size for load in self._added.values()]), strict=True))
        self._counts = {name: pieces[name][: gate.num_experts] for name, gate in self._gates.items()}
        if self._is_monitored:
            self.reports = {name: load.read(pieces[name].tolist()) for name, load in self._added.items()}

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


def _of_all_stages(mine: dict[str, Load], group: ProcessGroup | None) -> dict[str, Load]:
    """Loads by name, the same names in the same order on all stages. Called on all ranks of the group."""
    found: dict[str, Load] = {}
    for rows in comm.gather_json([[name, load.num_experts] for name, load in mine.items()], group=group):
        for name, experts in rows:
            found.setdefault(name, mine[name] if name in mine else Load(experts))
    return found


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
