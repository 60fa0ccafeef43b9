"""The parts every engine has, from precision to reporting."""

from ds_core.part import Part
from ds_core.parts.accumulation import Accumulation
from ds_core.parts.clock import Clock
from ds_core.parts.gradient_norm import GradientNorm
from ds_core.parts.inspection import Inspection
from ds_core.parts.loss_scale import LossScale
from ds_core.parts.optimizer import OptimizerStep
from ds_core.parts.position import Position
from ds_core.parts.precision import Precision
from ds_core.parts.preemption import Preemption
from ds_core.parts.reduction import Reduction
from ds_core.parts.reporting import Reporting
from ds_core.parts.residence import Residence
from ds_core.parts.saving import Saving
from ds_core.parts.schedule import Schedule
from ds_core.parts.throughput import Throughput
from ds_core.parts.weights import Weights
from ds_core.parts.whole_states import WholeStates

__all__ = [
    "Accumulation",
    "Clock",
    "GradientNorm",
    "Inspection",
    "LossScale",
    "OptimizerStep",
    "Position",
    "Precision",
    "Preemption",
    "Reduction",
    "Reporting",
    "Residence",
    "Saving",
    "Schedule",
    "Throughput",
    "Weights",
    "WholeStates",
    "core_parts",
]


def core_parts() -> list[Part]:
    """One of each, unprepared; their declared order decides who comes when."""
    reduction, loss_scale, optimizer = Reduction(), LossScale(), OptimizerStep()
    residence = Residence(optimizer)
    return [
        Saving(),
        residence,
        Clock(),
        Precision(),
        Weights(),
        WholeStates(),
        Accumulation(),
        Position(),
        reduction,
        loss_scale,
        GradientNorm(),
        optimizer,
        Inspection(reduction, loss_scale, optimizer, residence),
        Schedule(),
        Throughput(),
        Reporting(),
        Preemption(),
    ]
