"""The thread that writes one rank's share, and on the first rank commits it, while training goes on."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_core.checkpoint.saving.blocks import BlockSink, SinkClosedError
from ds_core.checkpoint.saving.commit import Header, commit
from ds_core.checkpoint.saving.liveness import Watch, alive, alive_name
from ds_core.checkpoint.saving.retention import Retention, prune
from ds_core.checkpoint.saving.share import Share, Written, note_name, persist, read_note, write_note
from ds_core.checkpoint.saving.under_way import UNDER_WAY
from ds_core.checkpoint.storage.disk import Disk
from ds_core.checkpoint.storage.files import data_name, read_whole, write_durably
from ds_core.checkpoint.storage.folder import identity, working_folder
from ds_core.checkpoint.together import FAILURES
from ds_core.errors import CheckpointError

__all__ = ["Job", "Pending"]

logger = logging.getLogger(__name__)

POLL_S = 0.01


def failed_name(rank: int) -> str:
    """Name of the file in which a rank says why it could not go on."""
    return f"rank-{rank:05d}.failed"


@dataclass(frozen=True)
class Job:
    """One save, as one rank sees it.

    Attributes:
        root: folder of checkpoints.
        header: what the checkpoint is.
        rank: who this is.
        share: this rank's data file.
        values: JSON values of this rank's parts.
        retention: which older ones are deleted when it is committed.
        patience_s: how long another rank may show no sign of life.
        disk: operations on files.
    """

    root: Path
    header: Header
    rank: int
    share: Share
    values: Mapping[str, Any]
    retention: Retention
    patience_s: float
    disk: Disk

    @property
    def final(self) -> Path:
        """The folder of the checkpoint once it is complete."""
        return self.root / self.header.tag

    @property
    def work(self) -> Path:
        """The folder that is written."""
        return working_folder(self.root, self.header.tag, self.header.identity)


class Pending:
    """A save under way. Its thread is no daemon: the interpreter ends only when the checkpoint is on disk.

    Attributes:
        job: what is saved.
        sink: where the bytes of this rank's file come from.
    """

    def __init__(self, job: Job, sink: BlockSink) -> None:
        self.job: Job = job
        self.sink: BlockSink = sink
        self._error: Exception | None = None
        self._is_written: bool = False
        self._thread: threading.Thread = threading.Thread(target=self._run, name="ds-checkpoint", daemon=False)
        UNDER_WAY.add(self)
        self._thread.start()

    def is_done(self) -> bool:
        """Whether it is on disk, or failed."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Returns when it is on disk, or has failed."""
        self._thread.join()

    def wait(self) -> None:
        """Returns when the checkpoint is on disk.

        Raises:
            CheckpointError: it could not be written; names the file, the rank and the reason.
        """
        self._thread.join()
        if self._error is not None:
            reason = str(self._error)
            told = reason if str(self.job.final) in reason else f"{self.job.final} was not written: {reason}"
            raise CheckpointError(told) from self._error
        if not self._is_written:
            raise CheckpointError(f"{self.job.final} was not written: its thread ended early; see the log")

    def _run(self) -> None:
        job = self.job
        try:
            with alive(job.work, job.rank, job.disk):
                self._write()
                if job.rank == 0:
                    notes = [self._note_of(rank) for rank in range(job.header.ranks)]
                    commit(job.root, job.work, job.header, notes, job.disk)
            if job.rank == 0:
                self._prune()
                logger.info("checkpoint %s written", job.final)
            else:
                self._await_commit()
            self._is_written = True
        except SinkClosedError as error:
            self._error = error
            self._give_up("its state could not be copied")
        except FAILURES as error:
            self._error = error
            logger.error("checkpoint %s: rank %d failed: %s", job.final, job.rank, error)
            self._give_up(str(error))
        finally:
            self.sink.abort()
            UNDER_WAY.discard(self)

    def _write(self) -> None:
        job = self.job
        path = job.work / data_name(job.rank)
        try:
            digests = persist(path, self.sink.blocks(), job.share, job.disk)
            written = Written(job.share.plan, path.name, job.share.file_bytes, digests, job.values)
            write_note(job.work, job.rank, written, job.disk)
        except OSError as error:
            raise CheckpointError(f"{job.final}: rank {job.rank} could not write {path}: {error}") from error

    def _note_of(self, rank: int) -> Written:
        """What another rank wrote, when it is done."""
        job = self.job
        note = job.work / note_name(rank)
        self._wait_for(
            rank, note.exists, "it died, or does not reach this folder: save to a folder that all ranks share"
        )
        return read_note(job.work, rank, job.disk)

    def _await_commit(self) -> None:
        """Returns when the first rank has committed."""
        mine = self.job.header.identity
        self._wait_for(0, lambda: identity(self.job.final) == mine, "it has not committed the checkpoint")

    def _wait_for(self, rank: int, is_done: Callable[[], bool], else_: str) -> None:
        """Returns when another rank has done its part.

        Raises:
            CheckpointError: it failed or died, and `else_` says what that means; or the folder is gone.
        """
        job = self.job
        watch = Watch(job.work, rank, job.patience_s)
        while True:
            was_there = job.work.exists()  # asked first: a commit takes it away
            if is_done():
                return
            self._raise_if_failed(rank)
            if not was_there:
                raise CheckpointError(f"{job.final}: the folder {job.work} vanished before it was committed")
            if watch.is_dead():
                raise CheckpointError(
                    f"{job.final}: rank {rank} showed no sign of life in {job.work} for {job.patience_s:g} s; {else_}"
                )
            time.sleep(POLL_S)

    def _raise_if_failed(self, rank: int) -> None:
        path = self.job.work / failed_name(rank)
        try:
            reason = read_whole(path, 1 << 20).decode(errors="replace")
        except OSError:
            return
        reason = reason or "it could not be written; that rank's own error and log say why"
        told = reason if str(self.job.final) in reason else f"{self.job.final}: rank {rank}: {reason}"
        raise CheckpointError(told)

    def _give_up(self, reason: str) -> None:
        """Makes room, then tells the others why; the folder itself is removed by the next save."""
        job = self.job
        with contextlib.suppress(OSError):
            job.disk.remove(job.work / data_name(job.rank))
        failed = job.work / failed_name(job.rank)
        try:
            write_durably(failed, reason.encode(), job.disk)
        except OSError:  # a full disk still renames
            with contextlib.suppress(OSError):
                job.disk.rename(job.work / alive_name(job.rank), failed)

    def _prune(self) -> None:
        """The checkpoint is safe by now: what cannot be deleted is only told."""
        job = self.job
        try:
            prune(job.root, job.retention, keep=job.header.tag, disk=job.disk)
        except OSError as error:
            logger.warning("older checkpoints in %s could not be deleted: %s", job.root, error)
