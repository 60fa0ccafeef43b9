"""Plans memory and traffic before anything runs, from the layouts a run would have."""

from __future__ import annotations

from ds_zero.estimate.estimator import Estimate, UnitRow, estimate
from ds_zero.estimate.memory import Held
from ds_zero.estimate.traffic import Sent

__all__ = ["Estimate", "Held", "Sent", "UnitRow", "estimate"]
