"""``ds io``: what bench and tune print, write and refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from ds_core.aio.files import SystemCalls
from ds_core.aio.measure import Bench, Result, best, measure
from ds_core.cli.io import app, size
from ds_core.config.aio import AioSection
from ds_core.errors import ConfigError, OffloadError
from ds_core.testing.file_engines import file_engine

runner = CliRunner()


def ds_io(*words):
    result = runner.invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stdout


SMALL = ("--size", "300000", "--block-size", "64K", "--loops", "2")


def test_bench_has_a_row_for_each_job_and_leaves_nothing(tmp_path):
    lines = ds_io("bench", tmp_path, *SMALL, "--queue-depth", 3, "--parallel", 2, "--validate").splitlines()
    assert lines[0].split() == ["job", "by", "block", "depth", "parallel", "GB/s", "lowest", "highest"]
    assert [line.split()[0] for line in lines[1:3]] == ["write", "read"]
    assert all(line.split()[2:5] == ["64K", "3", "2"] for line in lines[1:3])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("engine", "name"), [("threads", "threads"), ("uring", "io_uring")])
def test_bench_by_the_engine_that_was_asked_for(tmp_path, engine, name):
    if engine == "uring" and file_engine("host") is None:
        with pytest.raises(OffloadError, match="--engine uring cannot be had here"):
            ds_io("bench", tmp_path, *SMALL, "--engine", engine)
        return
    found = json.loads(ds_io("bench", tmp_path, *SMALL, "--engine", engine, "--no-read", "--json"))
    (row,) = found["results"]
    assert (row["job"], row["by"], row["bytes"], row["block_size"]) == ("write", name, 300_000, 65536)
    assert len(row["all_gb_per_s"]) == 2
    assert found["ours_by_fio"] == {}


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_fio_takes_turns_with_the_same_settings(tmp_path):
    found = json.loads(ds_io("bench", tmp_path, "--size", "1M", "--block-size", "64K", "--compare-fio", "--json"))
    assert [(row["job"], row["by"] == "fio") for row in found["results"]] == [
        ("write", False),
        ("write", True),
        ("read", False),
        ("read", True),
    ]
    assert set(found["ours_by_fio"]) == {"write", "read"}
    assert list(tmp_path.iterdir()) == []


class Flipped(SystemCalls):
    """A disk that returns other bytes than it was given."""

    def read(self, fd, view, offset):
        got = super().read(fd, view, offset)
        view[0] ^= 1
        return got


def test_validation_finds_what_is_not_what_was_written(tmp_path):
    bench = Bench(tmp_path, 20_000, AioSection(block_size=4096), "threads", ("read",), 1, validate=True)
    assert measure(bench)[0].job == "read"
    with pytest.raises(OffloadError, match="is not what was written to it"):
        measure(bench, calls=Flipped())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (("--block-size", "5000"), ConfigError, "aio.block_size must be a multiple of 4096, got 5000"),
        (("--size", "much"), ConfigError, "--size takes bytes like 4096, 256K, 1M or 2G, got 'much'"),
        (("--size", "0"), ConfigError, "--size must be at least 1 byte"),
        (("--size", "9000T"), OffloadError, "choose a smaller --size"),
        (("--engine", "urin"), OffloadError, "Did you mean 'uring'"),
        (("--no-read", "--no-write"), ConfigError, "nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path, words, error, says):
    with pytest.raises(error) as caught:
        ds_io("bench", tmp_path, *SMALL, *words)
    assert says in str(caught.value)
    with pytest.raises(OffloadError, match="is not a folder"):
        ds_io("bench", tmp_path / "none")


def tune(folder, *words):
    sweep = ("--size", "100000", "--block-sizes", "4K,64K", "--queue-depths", "1,4", "--parallels", "2")
    return ds_io("tune", folder, *sweep, *words)


def test_tune_tries_every_setting_and_writes_the_best(tmp_path):
    lines = tune(tmp_path, "--out", tmp_path / "aio.json").splitlines()
    tried = {tuple(line.split()[2:5]) for line in lines[1:9]}
    assert tried == {(block, depth, "2") for block in ("4K", "64K") for depth in ("1", "4")}
    written = json.loads((tmp_path / "aio.json").read_text())
    assert lines[9] == f'best: "aio": {json.dumps(written["aio"])}'
    assert written["aio"]["intra_op_parallelism"] == 2
    with pytest.raises(ConfigError, match="exists"):
        tune(tmp_path, "--out", tmp_path / "aio.json")


def test_tune_merges_into_a_config(tmp_path):
    config = tmp_path / "ds.json"
    config.write_text('{"train_batch_size": 4, "aio": {"overlap_events": false}}')
    found = json.loads(tune(tmp_path, "--config", config, "--json", "--no-write"))
    assert json.loads(config.read_text()) == {"train_batch_size": 4, "aio": {"overlap_events": False, **found["aio"]}}
    assert json.loads((tmp_path / "ds.json.bak").read_text())["aio"] == {"overlap_events": False}
    assert [row["job"] for row in found["results"]] == ["read"] * 4


def result(job: str, depth: int, seconds: float, block: int = 4096) -> Result:
    section = AioSection(block_size=block, queue_depth=depth)
    return Result(job, "threads", section, 1_000_000_000, (seconds,), True)


def test_the_best_moves_bytes_out_and_back_fastest():
    results = [result("write", 1, 1.0), result("read", 1, 1.0), result("write", 2, 0.1), result("read", 2, 3.0)]
    assert best(results).queue_depth == 1
    assert best([one for one in results if one.job == "write"]).queue_depth == 2


def test_among_equals_the_one_with_the_least_memory_under_way_is_best():
    results = [result("read", 8, 1.0), result("read", 4, 1.02), result("read", 2, 1.2), result("read", 4, 1.0, 8192)]
    assert (best(results).queue_depth, best(results).block_size) == (4, 4096)


@pytest.mark.parametrize(
    ("text", "nbytes"), [("4096", 4096), ("256K", 262144), ("1m", 1 << 20), ("2GiB", 2 << 30), ("1KB", 1024)]
)
def test_sizes_with_units(text, nbytes):
    assert size(text, "--size") == nbytes


def test_help_imports_no_torch():
    code = (
        "import sys; from ds_core.cli.main import main\n"
        "assert main(['io', 'bench', '--help']) == 0; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
