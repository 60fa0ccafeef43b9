"""The parts every engine has, from precision to reporting."""

from ds_core.part import Part
from ds_core.parts.accumulation import Accumulation
from ds_core.parts.clock import Clock
from ds_core.parts.gradient_norm import GradientNorm
from ds_core.parts.loss_scale import LossScale
from ds_core.parts.optimizer import OptimizerStep
from ds_core.parts.position import Position
from ds_core.parts.precision import Precision
from ds_core.parts.reduction import Reduction
from ds_core.parts.reporting import Reporting
from ds_core.parts.schedule import Schedule
from ds_core.parts.weights import Weights

__all__ = [
    "Accumulation",
    "Clock",
    "GradientNorm",
    "LossScale",
    "OptimizerStep",
    "Position",
    "Precision",
    "Reduction",
    "Reporting",
    "Schedule",
    "Weights",
    "core_parts",
]


def core_parts() -> list[Part]:
    """One of each, unprepared; their declared order decides who comes when."""
    return [
        Clock(),
        Precision(),
        Weights(),
        Accumulation(),
        Position(),
        Reduction(),
        LossScale(),
        GradientNorm(),
        OptimizerStep(),
        Schedule(),
        Reporting(),
    ]
