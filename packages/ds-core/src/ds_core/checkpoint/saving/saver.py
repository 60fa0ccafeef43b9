"""Saves an engine: all ranks agree, copy their state to host memory, and train on while it is written."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import torch

from ds_core import comm
from ds_core.checkpoint.saving.background import Job, Pending
from ds_core.checkpoint.saving.blocks import BlockPool, BlockSink, SinkClosedError
from ds_core.checkpoint.saving.commit import Header
from ds_core.checkpoint.saving.liveness import PATIENCE_S
from ds_core.checkpoint.saving.planner import EnginePlanner
from ds_core.checkpoint.saving.retention import Retention
from ds_core.checkpoint.saving.share import Share, fill, lay_out
from ds_core.checkpoint.saving.stream import STREAMING_BLOCKS
from ds_core.checkpoint.saving.working import begin_folder, clear_leftovers
from ds_core.checkpoint.storage.client_values import encode
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.storage.files import check_tag, to_json
from ds_core.checkpoint.storage.manifest import BLOCK_BYTES
from ds_core.checkpoint.storage.room import check_room
from ds_core.checkpoint.together import FAILURES, together
from ds_core.errors import CheckpointError
from ds_core.part import overrides
from ds_core.state import StatePlan

if TYPE_CHECKING:
    from ds_core.engine_api import EngineApi

__all__ = ["SaveOptions", "Saver"]

logger = logging.getLogger(__name__)


class SaveOptions(NamedTuple):
    """What the ``checkpoint`` section says of saving.

    Attributes:
        asynchronous: return when the state is copied, not when it is on disk.
        snapshot_limit_bytes: host memory of a rank's copy; None: half of what is available to it.
        keep_snapshot_memory: keep that memory for the next save.
        tag_validation: Ignore, Warn or Fail when ranks save under different tags.
        retention: which older ones are deleted.
    """

    asynchronous: bool = True
    snapshot_limit_bytes: int | None = None
    keep_snapshot_memory: bool = True
    tag_validation: str = "Warn"
    retention: Retention = Retention()


class Saver:
    """Writes checkpoints of one engine, one at a time.

    Args:
        options: what the config says.
        disk: operations on files.
        make_block: memory of `BLOCK_BYTES`; None: ordinary host memory.
        patience_s: how long another rank may show no sign of life.
    """

    def __init__(
        self,
        options: SaveOptions,
        *,
        disk: Disk = DISK,
        make_block: Callable[[], torch.Tensor] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.options: SaveOptions = options
        self.disk: Disk = disk
        self.patience_s: float = patience_s
        self._pool: BlockPool = BlockPool(1) if make_block is None else BlockPool(1, make_block)
        self._pending: Pending | None = None

    def save(
        self,
        engine: EngineApi,
        directory: str | Path,
        tag: str | None,
        client_state: Mapping[str, Any],
        *,
        save_latest: bool = True,
        exclude_frozen: bool = False,
    ) -> bool:
        """Writes ``directory/tag``. Called on all ranks; returns True, or raises on every rank.

        Args:
            engine: what is saved: the state plans of its parts, and its counters.
            directory: created when absent; the same folder for all ranks.
            tag: default ``global_step<N>``.
            client_state: values handed back by load: what JSON has, and what `client_values.encode` adds to it.
            save_latest: let ``latest`` name this checkpoint.
            exclude_frozen: leave out parameters that are not trained.

        Raises:
            CheckpointError: this save, or the one before it, failed; the last complete checkpoint is untouched.
        """
        root = Path(directory)
        with comm.scope("checkpoint"):
            # Some ranks may have told the last save's failure in a step already, others not yet: all raise it here.
            together("write the checkpoint before this one", root, self.wait)
            planned = _Planned.of(engine, root, tag, client_state, exclude_frozen, self.options.tag_validation)
            rank = comm.get_rank()
            header = Header(
                identity=planned.identity,
                tag=planned.tag,
                is_latest=save_latest,
                axes={axis.name: axis.size for axis in engine.mesh.plan.axes},
                ranks=comm.get_world_size(),
                plan=_facts(engine),
                counters=engine.counters(),
                client_state=planned.client_state,
            )
            job = Job(
                root=root,
                header=header,
                rank=rank,
                share=planned.share,
                values=planned.plan.values,
                retention=self.options.retention,
                patience_s=self.patience_s,
                disk=self.disk,
            )
            prepare = (lambda: self._prepare(job, planned.all_bytes)) if rank == 0 else (lambda: None)
            together("prepare the folder", job.final, prepare)
        self._copy(job, planned.planner)
        if not self.options.asynchronous:
            self.wait()
        return True

    def _prepare(self, job: Job, need_bytes: int) -> None:
        """A new folder to write in, on a disk that has room for it."""
        clear_leftovers(job.root, self.disk)
        check_room(job.root, need_bytes, self.disk)
        begin_folder(job.work, self.disk)

    def _copy(self, job: Job, planner: EnginePlanner) -> None:
        """Copies the state and starts the thread that writes it."""
        self._pool.limit = max(self._pool.made, self._limit(job.share.file_bytes))
        sink = BlockSink(self._pool)
        self._pending = Pending(job, sink)
        try:
            fill(sink, job.share, planner)
        except SinkClosedError:
            self.wait()  # the writer has failed, and says why
        except FAILURES as error:
            sink.abort()
            self._settle()
            raise CheckpointError(f"{job.final}: rank {job.rank} could not copy its state: {error}") from error
        except BaseException:
            sink.abort()
            raise

    def _limit(self, file_bytes: int) -> int:
        """Blocks the copy may take."""
        blocks = -(-file_bytes // BLOCK_BYTES)
        if not self.options.asynchronous:
            return min(blocks, STREAMING_BLOCKS)
        limit_bytes = self.options.snapshot_limit_bytes
        if limit_bytes is None:
            local = comm.get_local_world_size()
            limit_bytes = self._pool.made * BLOCK_BYTES + psutil.virtual_memory().available // (2 * local)
        return max(1, min(blocks, limit_bytes // BLOCK_BYTES))

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Raises:
            CheckpointError: it could not be written; told once.
        """
        pending = self._settle()
        if pending is not None:
            pending.wait()

    def check(self) -> None:
        """Raises what a save in the background failed with, once; does not wait."""
        if self._pending is not None and self._pending.is_done():
            self.wait()

    def _settle(self) -> Pending | None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.join()
            if not self.options.keep_snapshot_memory:
                self._pool.clear()
        return pending


class _Planned(NamedTuple):
    """What all ranks agreed on, and what this one writes."""

    tag: str
    identity: str
    all_bytes: int
    plan: StatePlan
    planner: EnginePlanner
    share: Share
    client_state: Any

    @staticmethod
    def of(
        engine: EngineApi,
        root: Path,
        tag: str | None,
        client_state: Mapping[str, Any],
        exclude_frozen: bool,
        tag_validation: str,
    ) -> _Planned:
        """Plans this rank's share; an error of any rank reaches all.

        Raises:
            CheckpointError: a rank could not plan, or tags differ.
        """
        failure: Exception | None = None
        told: dict[str, Any] = {"error": None}
        try:
            written = encode(dict(client_state))
            to_json(written, "client_state")
            told["tag"] = check_tag(tag if tag is not None else f"global_step{engine.global_steps}")
            told["identity"] = secrets.token_hex(8)
            plan = collect(engine, exclude_frozen)
            planner = EnginePlanner(plan.fragments)
            share = lay_out(planner.create_local_plan())
            told["bytes"] = share.file_bytes
        except FAILURES as error:
            failure = error
            told["error"] = str(error)
        ranks = comm.gather_json(told)
        wrong = [rank for rank, each in enumerate(ranks) if each["error"] is not None]
        if wrong:
            if isinstance(failure, CheckpointError) or (failure is not None and len(ranks) == 1):
                raise failure
            listed = ", ".join(map(str, wrong))
            raise CheckpointError(f"{root}: rank {listed} could not save: {ranks[wrong[0]]['error']}") from failure
        agreed = _agree_on_tag([each["tag"] for each in ranks], tag_validation)
        all_bytes = sum(each["bytes"] for each in ranks)
        return _Planned(agreed, ranks[0]["identity"], all_bytes, plan, planner, share, written)


def _agree_on_tag(given: list[str], policy: str) -> str:
    """The first rank's tag; what becomes of others is the policy's (``checkpoint.tag_validation``)."""
    if len(set(given)) > 1 and policy != "Ignore":
        listed = ", ".join(f"rank {rank}: {name}" for rank, name in enumerate(given))
        message = f"ranks save under different tags ({listed}); pass the same tag on all ranks"
        if policy == "Fail":
            raise CheckpointError(f"{message}, or set checkpoint.tag_validation to Warn")
        logger.warning("%s; the first rank's is used", message)
    return given[0]


def collect(engine: EngineApi, exclude_frozen: bool) -> StatePlan:
    """What this rank contributes to a checkpoint."""
    for refuse in overrides(engine.parts, "before_save"):
        refuse()
    whole = StatePlan()
    frozen = {f"model/{n}" for n, p in engine.module.named_parameters() if not p.requires_grad}
    for part in engine.parts:
        plan = part.state_plan()
        if plan is not None:
            whole.fragments.extend(plan.fragments)
            whole.values.update(plan.values)
    if exclude_frozen:
        whole.fragments = [fragment for fragment in whole.fragments if fragment.key not in frozen]
    return whole


def _facts(engine: EngineApi) -> dict[str, Any]:
    """How the engine keeps its state, for who looks at the checkpoint; a load does not depend on it."""
    config = engine.config
    modes = [name for name in ("bf16", "fp16") if config.get(f"{name}.enabled", False)]
    return {
        "zero_stage": engine.zero_optimization_stage(),
        "precision": modes[0] if modes else "fp32",
        "offload_optimizer": config.get("zero_optimization.offload_optimizer.device", "none"),
        "offload_param": config.get("zero_optimization.offload_param.device", "none"),
    }
