"""The numbers and pictures of the pages on pipeline schedules are those that the commands give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ds_core.cli import main

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [DOCS / "explanation" / "pipeline-schedules.md", DOCS / "how-to" / "plan-a-pipeline.md"]
SHOWN = [
    (command, output)
    for page in PAGES
    for command, output in re.findall(
        r"^\$ ds (pipeline .+)\n((?:(?!\$|```).*\n)+)```", page.read_text(), flags=re.MULTILINE
    )
]
PICTURES = sorted((DOCS / "explanation" / "img").glob("pipeline-*.svg"))


@pytest.mark.parametrize(("command", "output"), SHOWN)
def test_what_a_page_shows_is_what_the_command_prints(command, output, capsys):
    assert main(command.split()) == 0
    assert capsys.readouterr().out == output


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_what_the_command_draws(picture, tmp_path, capsys):
    name = picture.stem.removeprefix("pipeline-")
    drawn = tmp_path / "drawn.svg"
    options = ["--schedule", name, "--ranks", "4", "--micro-batches", "8", "--svg", str(drawn)]
    assert main(["pipeline", "plan", *options]) == 0
    assert drawn.read_text() == picture.read_text()


def test_the_pages_show_something():
    assert len(SHOWN) == 3
    assert len(PICTURES) == 6
