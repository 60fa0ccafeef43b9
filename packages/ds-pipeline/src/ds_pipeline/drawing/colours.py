"""Colours of ops, told apart by colour-blind readers too, and their shades for several stages of a rank."""

from __future__ import annotations

from ds_pipeline.schedules.ir import Op

__all__ = ["GRID", "IDLE", "INK", "PAPER", "SOFT_INK", "colour", "ink_on"]

PAPER = "#ffffff"
INK = "#1f2328"
SOFT_INK = "#656d76"
GRID = "#c8ced5"
IDLE = "#eceff2"

# Hues after Okabe and Ito, Color Universal Design, 2008; light and dark end for the first and last stage of a rank.
_ENDS = {
    Op.F: ((126, 192, 238), (0, 92, 158)),
    Op.B: ((246, 190, 80), (176, 98, 0)),
    Op.I: ((244, 158, 128), (178, 56, 14)),
    Op.W: ((116, 208, 170), (0, 112, 82)),
}
_ALONE = 0.12  # where between the ends a rank's only stage is


def colour(op: Op, shade: int, shades: int) -> str:
    """The colour of an op at the `shade`-th of `shades` stages of its rank, as ``#rrggbb``."""
    at = shade / (shades - 1) if shades > 1 else _ALONE
    light, dark = _ENDS[op]
    return "#" + "".join(f"{round(a + (b - a) * at):02x}" for a, b in zip(light, dark, strict=True))


def ink_on(fill: str) -> str:
    """Black or white, whichever is easier to read on `fill`.

    Source: relative luminance and contrast of WCAG 2.1.
    """
    parts = [int(fill[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return INK if (luminance + 0.05) / 0.066 > 1.05 / (luminance + 0.05) else PAPER
