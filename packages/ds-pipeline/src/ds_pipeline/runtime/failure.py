"""When a stage fails or dies: how every rank of the pipeline learns which one, and is not left waiting.

A rank that fails writes what happened into the store the ranks met at, and breaks the connections of the pipeline's own
group. Whoever waits for it then fails too, reads the report, and breaks its connections in turn. A process that is gone
has broken its connections by that, and leaves no report; the first rank that notices writes one.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Alarm"]

logger = logging.getLogger(__name__)

STORE_S = 2.0
"""How long a failing rank talks to the store, whose host may be what is gone."""


class Alarm:
    """Tells and asks what happened to the pipeline.

    Args:
        groups: the pipeline's own groups, which nobody else uses.
        peer: a world rank to break connections with, when there is one.
    """

    def __init__(self, groups: Sequence[dist.ProcessGroup], peer: int | None) -> None:
        self._groups: list[dist.ProcessGroup] = list(groups)
        self._peer: int | None = peer
        self._key: str = f"ds_pipeline/failed/{groups[0].group_name}" if groups else ""
        self._broken: bool = False

    def raise_(self, report: str) -> str:
        """Tells all ranks of the pipeline, unless another was first; the first report. What is sent later fails."""
        first = report
        if self._groups and not self._broken:
            self._broken = True
            first = self._ask(lambda store: store.compare_set(self._key, "", json.dumps(report))) or report
            self._break()
        return first

    def _ask(self, talk: Callable[[Any], bytes]) -> str | None:
        answers: list[str] = []

        def run() -> None:
            try:
                answers.append(json.loads(talk(dist.distributed_c10d._get_default_store())))
            except (RuntimeError, ValueError) as error:  # the store went down with its host
                logger.debug("the store does not answer: %s", error)

        # In a thread of its own because a store whose host hangs would block for its whole timeout.
        thread = threading.Thread(target=run, daemon=True, name="ds-pipeline-alarm")
        thread.start()
        thread.join(STORE_S)
        return answers[0] if answers else None

    def _break(self) -> None:
        for group in self._groups:
            try:
                if self._peer is not None and "gloo" in group.name().lower():
                    # gloo closes all connections of a group in which a wait ran out of time, and only then.
                    scrap = torch.empty(1, dtype=torch.uint8)
                    work = group.recv([scrap], dist.get_group_rank(group, self._peer), 7)
                    work.wait(timedelta(milliseconds=1))
                group.abort()
            except (RuntimeError, ValueError) as error:
                logger.debug("breaking the pipeline's connections: %s", error)
