"""What several test modules ask for: a folder of checkpoints, and the command that works on it."""

from __future__ import annotations

import pytest
from checkpoint_folder import build, step

from ds_core.cli import main


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, of steps 1 to 3."""
    engine = build()
    for epoch in range(3):
        step(engine)
        engine.save_checkpoint(tmp_path / "ckpt", client_state={"epoch": epoch})
    engine.wait_for_checkpoint()
    engine.destroy()
    return tmp_path / "ckpt"


@pytest.fixture
def ds(capsys):
    """Runs `ds checkpoint` and returns (exit code, standard output, standard error)."""

    def run(*words):
        code = main(["checkpoint", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
