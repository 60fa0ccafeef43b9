"""Host files and filters: what a job uses of the machines and devices there are."""

from __future__ import annotations

import base64
import json

import pytest

from ds_core.errors import LaunchError
from ds_core.launch.hosts import (
    encode_world_info,
    fetch_hostfile,
    parse_hostfile,
    parse_inclusion_exclusion,
    parse_resource_filter,
)

POOL = {"w0": 4, "w1": 2}


def test_a_host_file_has_machines_in_order(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# two of them\nw0 slots=4\n\nw1   slots=2  # the small one\n")
    assert list(fetch_hostfile(file).items()) == [("w0", 4), ("w1", 2)]
    assert fetch_hostfile(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["w0 slot=4"], "line 1: a line is `host slots=N`"),
        (["w0 slots=4", "w0 slots=2"], "line 2: machine 'w0' is there twice"),
        (["# nothing"], "names no machine"),
    ],
)
def test_a_wrong_host_file_says_where(lines, says):
    with pytest.raises(LaunchError, match=says):
        parse_hostfile(lines)


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ("", "", {"w0": [0, 1, 2, 3], "w1": [0, 1]}),
        ("w1", "", {"w1": [0, 1]}),
        ("w0:0,2@w1", "", {"w0": [0, 2], "w1": [0, 1]}),
        ("", "w0:1", {"w0": [0, 2, 3], "w1": [0, 1]}),
        ("", "w1", {"w0": [0, 1, 2, 3]}),
    ],
)
def test_filters(include, exclude, left):
    assert parse_inclusion_exclusion(POOL, include, exclude) == left


@pytest.mark.parametrize(
    ("include", "exclude", "says"),
    [
        ("w0", "w1", "exclude each other"),
        ("w9", "", "no machine 'w9'"),
        ("w1:2", "", "w1 has no device 2"),
        ("w1:a", "", "numbers separated by commas"),
        ("", "w0@w1", "leaves no device"),
    ],
)
def test_filters_that_cannot_be(include, exclude, says):
    with pytest.raises(LaunchError, match=says):
        parse_inclusion_exclusion(POOL, include, exclude)


def test_world_info_is_json():
    world = parse_resource_filter({"w0": [0, 1]})
    assert json.loads(base64.urlsafe_b64decode(encode_world_info(world))) == {"w0": [0, 1]}
