"""Pipeline schedules as data: made by name, written and read as text, checked, simulated and drawn; no torch needed."""

from ds_pipeline.schedules.ir import Action, Message, Op, Schedule, looped, messages, v_shaped
from ds_pipeline.schedules.make import SCHEDULES, make_schedule

__all__ = ["SCHEDULES", "Action", "Message", "Op", "Schedule", "looped", "make_schedule", "messages", "v_shaped"]
