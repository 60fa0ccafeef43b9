"""Pictures of simulated schedules: laid out once, written as SVG or PNG."""

from ds_pipeline.drawing.layout import Picture, picture_of
from ds_pipeline.drawing.png import write_png
from ds_pipeline.drawing.svg import svg_text

__all__ = ["Picture", "picture_of", "svg_text", "write_png"]
