"""Pictures of schedules: what is drawn where, as SVG and PNG."""

from __future__ import annotations

import struct
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from ds_pipeline.drawing import picture_of, svg_text, write_png
from ds_pipeline.drawing.colours import IDLE, colour, ink_on
from ds_pipeline.schedules import SCHEDULES, Costs, Op, make_schedule, simulate

SVG = "{http://www.w3.org/2000/svg}"


def drawn(name: str = "zbv", ranks: int = 3, micro_batches: int = 4, costs: Costs | None = None):
    return simulate(make_schedule(name, ranks=ranks, micro_batches=micro_batches), costs)


def notes(root: ElementTree.Element) -> dict[str, ElementTree.Element]:
    """Boxes of actions, by what they say of themselves."""
    boxes = {box.findtext(f"{SVG}title", ""): box for box in root.iter(f"{SVG}rect")}
    boxes.pop("", None)
    return boxes


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_action_is_a_box_as_wide_as_it_is_long(name):
    run = drawn(name, costs=Costs(2, 1, 3, 0.5))
    boxes = notes(ElementTree.fromstring(svg_text(picture_of(run))))
    timed = [one for row in run.rows for one in row]
    assert len(boxes) == len(timed)
    scales = set()
    for one in timed:
        box = boxes[f"{one.action}: {one.start:g} to {one.end:g}"]
        scales.add(round(float(box.attrib["width"]) / (one.end - one.start), 1))
    assert len(scales) == 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_boxes_of_a_rank_do_not_cover_each_other_and_stay_in_its_row(name):
    picture = picture_of(drawn(name, ranks=4, micro_batches=9, costs=Costs(1, 2, 1, 0.7)))
    idle = [box for box in picture.boxes if box.fill == IDLE and box.width > 100]
    assert len(idle) == 4
    for row in idle:
        inside = sorted(box.x for box in picture.boxes if box.note and box.y == row.y)
        ends = sorted(box.x + box.width for box in picture.boxes if box.note and box.y == row.y)
        assert all(start >= end - 1e-6 for start, end in zip(inside[1:], ends, strict=False))
        assert inside[0] >= row.x - 1e-6
        assert ends[-1] <= row.x + row.width + 1e-6


def test_everything_is_inside_the_picture():
    picture = picture_of(drawn("dualpipev", 4, 30))
    for box in picture.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= picture.width + 1e-6
        assert box.y + box.height <= picture.height + 1e-6
    for word in picture.words:
        assert 0 < word.y < picture.height
        assert 0 <= word.x < picture.width


def test_the_title_says_what_it_is_and_how_much_is_idle():
    run = drawn("1f1b", 4, 8)
    assert f"1f1b: 4 ranks, 8 micro-batches; bubble {run.bubble_fraction:.1%}" in svg_text(picture_of(run))


def test_the_legend_names_only_what_is_there():
    whole, split = (svg_text(picture_of(drawn(name))) for name in ("1f1b", "zb-h1"))
    assert ">backward<" in whole
    assert "backward, weights" not in whole
    assert ">backward<" not in split
    assert "backward, weights" in split


def test_the_same_schedule_is_the_same_bytes():
    assert svg_text(picture_of(drawn())) == svg_text(picture_of(drawn()))


def test_names_cannot_break_out_of_the_svg():
    text = svg_text(picture_of(simulate(_named('<script>"&'))))
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"].startswith('<script>"&: ')
    assert "<script>" not in text


def _named(name: str):
    from dataclasses import replace

    return replace(make_schedule("1f1b", ranks=2, micro_batches=2), name=name)


def test_many_micro_batches_leave_out_labels_and_keep_boxes():
    run = drawn("gpipe", 2, 400)
    picture = picture_of(run)
    assert picture.width < 2000
    assert sum(bool(box.note) for box in picture.boxes) == 2 * 2 * 400
    assert not any(box.label for box in picture.boxes if box.width < 8)


@pytest.mark.parametrize("shades", [1, 2, 3, 8])
def test_labels_are_readable_on_every_colour_and_shades_differ(shades):
    fills = [colour(op, shade, shades) for op in Op for shade in range(shades)]
    assert len(set(fills)) == len(fills)

    def luminance(code: str) -> float:
        parts = [int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        return sum(
            weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
            for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    for fill in fills:
        low, high = sorted((luminance(fill), luminance(ink_on(fill))))
        assert (high + 0.05) / (low + 0.05) >= 4.0


def test_actions_that_take_no_time_are_drawn_too():
    assert "bubble" in svg_text(picture_of(drawn("1f1b", costs=Costs(0, 0, 0))))


def test_a_png_has_the_size_of_the_picture(tmp_path):
    picture = picture_of(drawn("zbv", 2, 4))
    write_png(picture, tmp_path / "plan.png", scale=1.0)
    data = (tmp_path / "plan.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert abs(width - picture.width) <= 1
    assert abs(height - picture.height) <= 1


def test_schedules_and_pictures_need_neither_torch_nor_matplotlib():
    program = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "from ds_core.errors import MissingWheelError\n"
        "from ds_pipeline.drawing import picture_of, svg_text, write_png\n"
        "from ds_pipeline.schedules import make_schedule, simulate\n"
        "picture = picture_of(simulate(make_schedule('zbv', ranks=2, micro_batches=4)))\n"
        "assert svg_text(picture)\n"
        "try:\n"
        "    write_png(picture, 'never.png')\n"
        "except MissingWheelError as error:\n"
        "    assert 'pip install matplotlib' in str(error)\n"
        "else:\n"
        "    raise SystemExit('drawn without matplotlib')\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
