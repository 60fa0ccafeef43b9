"""Pipeline schedules as data: made by name, written and read as text, checked, simulated and drawn; no torch needed."""

from ds_pipeline.schedules.ir import Action, Message, Op, Schedule, looped, messages, v_shaped
from ds_pipeline.schedules.listing import forward_only
from ds_pipeline.schedules.make import SCHEDULES, make_schedule
from ds_pipeline.schedules.memory import Held, peak_bytes, peaks
from ds_pipeline.schedules.order import in_order, inputs_of
from ds_pipeline.schedules.simulate import Costs, Simulation, Timed, simulate
from ds_pipeline.schedules.text import from_text, to_text
from ds_pipeline.schedules.validate import validate

__all__ = [
    "SCHEDULES",
    "Action",
    "Costs",
    "Held",
    "Message",
    "Op",
    "Schedule",
    "Simulation",
    "Timed",
    "forward_only",
    "from_text",
    "in_order",
    "inputs_of",
    "looped",
    "make_schedule",
    "messages",
    "peak_bytes",
    "peaks",
    "simulate",
    "to_text",
    "v_shaped",
    "validate",
]
