"""Writes a checkpoint: every rank its share, then one rename makes all of it appear at once."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_core import comm
from ds_core.checkpoint.files import (
    FORMAT,
    LATEST,
    MANIFEST,
    VERSION,
    check_tag,
    fsync_directory,
    rank_stem,
    to_json,
    write_durably,
)
from ds_core.checkpoint.load import latest_tag
from ds_core.checkpoint.stream import write_fragments
from ds_core.checkpoint.together import together
from ds_core.errors import CheckpointError
from ds_core.state import Fragment, StatePlan

if TYPE_CHECKING:
    from ds_core.engine_api import EngineApi

__all__ = ["save"]

logger = logging.getLogger(__name__)


def save(
    engine: EngineApi,
    directory: str | Path,
    tag: str | None,
    client_state: dict[str, Any],
    save_latest: bool,
    exclude_frozen: bool,
) -> bool:
    """Writes ``directory/tag``. Called on all ranks; returns True, or raises on every rank.

    Args:
        engine: what is saved: the state plans of its parts, and its counters.
        directory: created when absent.
        tag: default ``global_step<N>``.
        client_state: JSON-able values handed back by load.
        save_latest: let ``latest`` name this checkpoint.
        exclude_frozen: leave out parameters that are not trained.

    Raises:
        CheckpointError: a rank could not write; nothing was replaced and the last checkpoint is untouched.
    """
    root = Path(directory)
    policy = engine.config["checkpoint"]
    to_json(client_state, "client_state")
    tag = check_tag(tag if tag is not None else f"global_step{engine.global_steps}")
    tag = _agree_on_tag(tag, policy.tag_validation)
    rank, final, work = comm.get_rank(), root / tag, root / f".{tag}.writing"
    header = {
        "format": FORMAT,
        "version": VERSION,
        "tag": tag,
        "ranks": comm.get_world_size(),
        "counters": engine.counters(),
        "client_state": client_state,
    }
    together("prepare the folder", final, lambda: _fresh(work) if rank == 0 else None)
    together("write its share", final, lambda: _write_share(work, rank, _collect(engine, exclude_frozen)))
    together("commit", final, lambda: _commit(root, work, final, header, save_latest) if rank == 0 else None)
    if rank == 0 and policy.keep_last is not None:
        prune(root, policy.keep_last)
    if rank == 0:
        logger.info("checkpoint %s written", final)
    return True


def _agree_on_tag(tag: str, policy: str) -> str:
    """The first rank's tag; what becomes of others is the policy's (``checkpoint.tag_validation``)."""
    tags = comm.gather_json(tag)
    if len(set(tags)) > 1 and policy != "Ignore":
        listed = ", ".join(f"rank {rank}: {name}" for rank, name in enumerate(tags))
        message = f"ranks save under different tags ({listed}); pass the same tag on all ranks"
        if policy == "Fail":
            raise CheckpointError(f"{message}, or set checkpoint.tag_validation to Warn")
        logger.warning("%s; the first rank's is used", message)
    return check_tag(tags[0])


def prune(root: Path, keep: int) -> list[Path]:
    """Deletes all but the newest `keep` complete checkpoints of `root`, never the one ``latest`` names."""
    complete = [path for path in root.iterdir() if not path.name.startswith(".") and (path / MANIFEST).is_file()]
    complete.sort(key=lambda path: (path / MANIFEST).stat().st_mtime_ns)
    latest = latest_tag(root)
    doomed = [path for path in complete[:-keep] if path.name != latest]
    for path in doomed:
        shutil.rmtree(path)
    return doomed


def _collect(engine: EngineApi, exclude_frozen: bool) -> StatePlan:
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


def _fresh(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)


def _write_share(work: Path, rank: int, plan: StatePlan) -> None:
    names = {f"t{index}": fragment for index, fragment in enumerate(plan.fragments)}
    write_fragments(work / f"{rank_stem(rank)}.safetensors", names)
    index = {"fragments": {name: _describe(fragment) for name, fragment in names.items()}, "values": plan.values}
    write_durably(work / f"{rank_stem(rank)}.json", to_json(index, "engine state"))


def _describe(fragment: Fragment) -> list[Any]:
    return [fragment.key, list(fragment.shape), fragment.start, fragment.stop]


def _commit(root: Path, work: Path, final: Path, header: dict[str, Any], save_latest: bool) -> None:
    files = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
    write_durably(work / MANIFEST, to_json({**header, "files": files}, "manifest"))
    replaced = root / f".{final.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.replace(replaced)
    work.replace(final)
    fsync_directory(root)
    if save_latest:
        write_durably(root / LATEST, final.name.encode())
    shutil.rmtree(replaced, ignore_errors=True)
