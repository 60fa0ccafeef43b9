"""What tests of ds-core and of every other wheel share: real ranks, faults on purpose, parity with plain torch.

Names are loaded at first use, so importing this package imports neither torch nor pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_core.testing.faults import delay, expect_error_on_all_ranks, fail_at, kill_rank
    from ds_core.testing.parity import assert_bit_equal, train_engine, train_plain, ulp_distance
    from ds_core.testing.ranks import RankDied, RankError, RankFailure, run_ranks

__all__ = [
    "RankDied",
    "RankError",
    "RankFailure",
    "assert_bit_equal",
    "delay",
    "expect_error_on_all_ranks",
    "fail_at",
    "kill_rank",
    "run_ranks",
    "train_engine",
    "train_plain",
    "ulp_distance",
]

_HOME = {
    "RankDied": "ranks",
    "RankError": "ranks",
    "RankFailure": "ranks",
    "run_ranks": "ranks",
    "delay": "faults",
    "expect_error_on_all_ranks": "faults",
    "fail_at": "faults",
    "kill_rank": "faults",
    "assert_bit_equal": "parity",
    "train_engine": "parity",
    "train_plain": "parity",
    "ulp_distance": "parity",
}


def __getattr__(name: str) -> Any:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
