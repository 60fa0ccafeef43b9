"""Formats of checkpoints: the most specific one that recognizes a folder opens it, and doubt is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import ds_core
from ds_core.checkpoint.source import Source
from ds_core.checkpoint.sources import formats, open_source, recognize
from ds_core.errors import CheckpointError
from ds_core.hooks import CheckpointFormatEntry, hookimpl
from ds_core.plugins import PluginManager


def detect_note(directory: Path, tag: str | None) -> str | None:
    return "" if (directory / "note.txt").is_file() else None


def open_note(directory: Path, tag: str, strict: bool) -> tuple[Path, str, bool]:
    return directory, tag, strict


def offering(*specificities: int) -> PluginManager:
    """A manager with one format a specificity, all of which recognize a folder with a note."""
    found = PluginManager([], {})
    for index, specificity in enumerate(specificities):
        entry = CheckpointFormatEntry(
            f"note{index}", "note_format:detect_note", "note_format:open_note", "note.txt", specificity
        )
        made = ModuleType(f"plug_note{index}")
        vars(made).update(__file__="", DS_HOOK_API=(1, 1), ds_checkpoint_formats=hookimpl(_listing(entry)))
        record = found.add_module(made, f"acme-note{index}:note{index}")
        assert not record.reason, record.reason
    return found


def _listing(entry: CheckpointFormatEntry):
    def ds_checkpoint_formats() -> list[CheckpointFormatEntry]:
        return [entry]

    return ds_checkpoint_formats


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "note.txt").write_text("here")
    return tmp_path


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """References name this module as ``note_format``, whatever name pytest imported it under."""
    monkeypatch.setitem(sys.modules, "note_format", sys.modules[__name__])


def test_the_most_specific_format_opens_the_folder(folder):
    manager = offering(10, 30, 20)
    assert [provided.item.name for provided in formats(manager)] == ["note1", "note2", "note0"]
    assert recognize(folder, manager=manager).format == "note1"
    assert open_source(folder, strict=False, manager=manager) == (folder, "", False)


def test_equal_formats_are_an_error_that_names_both_and_says_what_decides(folder):
    manager = offering(10, 10)
    with pytest.raises(CheckpointError, match=r"'note0' \(acme-note0 0.*and 'note1'.*format='note0'"):
        open_source(folder, manager=manager)
    assert open_source(folder, format="note1", manager=manager)[1] == ""


def test_nothing_recognized_says_what_was_looked_for_and_what_is_there(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    (tmp_path / "logs").mkdir()
    with pytest.raises(CheckpointError, match=r"looked for note0: note.txt; there is: logs/, weights.bin"):
        open_source(tmp_path, manager=offering(10))
    with pytest.raises(CheckpointError, match="it is not there"):
        open_source(tmp_path / "gone", manager=offering(10))
    with pytest.raises(CheckpointError, match="it is no folder"):
        open_source(tmp_path / "weights.bin", manager=offering(10))


def test_an_unknown_format_is_answered_with_the_nearest(folder):
    with pytest.raises(CheckpointError, match=r"no checkpoint format 'nota'. Did you mean 'note0'\?"):
        open_source(folder, format="nota", manager=offering(10))


def test_our_own_checkpoint_is_a_source(tmp_path):
    engine = ds_core.initialize(
        model=nn.Linear(3, 2),
        config={"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}},
    )[0]
    engine.save_checkpoint(tmp_path, tag="t", client_state={"epoch": 4})
    source = open_source(tmp_path)
    assert isinstance(source, Source)
    assert (source.format, source.path, source.client_state) == ("ds", tmp_path / "t", {"epoch": 4})
    assert source.counters["global_steps"] == 0
    assert torch.equal(source.full("model/weight"), engine.module.weight)
    source.verify()
    source.close()
