"""A picture as SVG: plain rectangles, lines and texts, the same bytes for the same picture."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from ds_pipeline.drawing.layout import Box, Line, Picture, Word

__all__ = ["svg_text"]

LABEL_SIZE = 11
FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"


def svg_text(picture: Picture) -> str:
    """The picture as one SVG document, without script, style sheet or anything from elsewhere."""
    width, height = _number(picture.width), _number(picture.height)
    title = next((word.text for word in picture.words if word.is_bold), "pipeline schedule")
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{FONT}" role="img" aria-label={quoteattr(title)}>',
        *map(_box, picture.boxes),
        *map(_line, picture.lines),
        *map(_word, picture.words),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """At most two digits behind the point, none that say nothing."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _box(box: Box) -> str:
    x, y, width, height = map(_number, (box.x, box.y, box.width, box.height))
    edge = f' stroke="{box.edge}" stroke-width="1"' if box.edge else ""
    note = f"<title>{escape(box.note)}</title>" if box.note else ""
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{box.fill}"{edge}'
    shape += f">{note}</rect>" if note else "/>"
    if not box.label:
        return shape
    middle = Word(
        box.x + box.width / 2, box.y + box.height / 2 + 4, box.label, size=LABEL_SIZE, anchor="middle", ink=box.ink
    )
    return shape + _word(middle, extra=' pointer-events="none"')


def _line(line: Line) -> str:
    x1, y1, x2, y2 = map(_number, (line.x1, line.y1, line.x2, line.y2))
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{line.stroke}"/>'


def _word(word: Word, extra: str = "") -> str:
    weight = ' font-weight="600"' if word.is_bold else ""
    anchor = "" if word.anchor == "start" else f' text-anchor="{word.anchor}"'
    return (
        f'<text x="{_number(word.x)}" y="{_number(word.y)}" font-size="{_number(word.size)}" fill="{word.ink}"'
        f"{anchor}{weight}{extra}>{escape(word.text)}</text>"
    )
