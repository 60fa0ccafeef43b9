"""A picture as PNG, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_core.errors import MissingWheelError
from ds_pipeline.drawing.layout import Picture
from ds_pipeline.drawing.svg import LABEL_SIZE

__all__ = ["write_png"]

DENSITY = 100  # pixels of the picture to an inch, before `scale`
POINT = 72 / DENSITY  # points of a pixel
ANCHORS = {"start": "left", "middle": "center", "end": "right"}


def write_png(picture: Picture, path: str | Path, *, scale: float = 2.0) -> None:
    """Draw the picture into a file, `scale` times as many pixels wide as the picture says.

    Raises:
        MissingWheelError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise MissingWheelError(
            f"a PNG needs matplotlib, which cannot be imported ({error}). Install it: pip install matplotlib; "
            "SVG needs nothing"
        ) from error
    figure = Figure(figsize=(picture.width / DENSITY, picture.height / DENSITY))
    FigureCanvasAgg(figure)
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, picture.width)
    axes.set_ylim(picture.height, 0)
    axes.set_axis_off()
    for box in picture.boxes:
        edge = box.edge or "none"
        axes.add_patch(
            Rectangle((box.x, box.y), box.width, box.height, facecolor=box.fill, edgecolor=edge, linewidth=POINT)
        )
        if box.label:
            middle = box.x + box.width / 2, box.y + box.height / 2 + 4
            axes.text(*middle, box.label, fontsize=LABEL_SIZE * POINT, ha="center", va="baseline", color=box.ink)
    for line in picture.lines:
        axes.plot((line.x1, line.x2), (line.y1, line.y2), color=line.stroke, linewidth=POINT)
    for word in picture.words:
        weight = "bold" if word.is_bold else "normal"
        place = {"ha": ANCHORS[word.anchor], "va": "baseline"}
        axes.text(
            word.x,
            word.y,
            word.text,
            fontsize=word.size * POINT,
            color=word.ink,
            weight=weight,
            parse_math=False,
            **place,
        )
    figure.savefig(path, format="png", dpi=DENSITY * scale, metadata={"Software": None})
