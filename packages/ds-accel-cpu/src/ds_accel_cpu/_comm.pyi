from collections.abc import Sequence

ALL_REDUCE: int
REDUCE: int
REDUCE_SCATTER: int
ALL_GATHER: int
BROADCAST: int
GATHER: int
SCATTER: int
ALL_TO_ALL: int
BARRIER: int
ANY_RANK: int

def dtypes() -> list[str]: ...
def reducible_dtypes() -> list[str]: ...
def segment_bytes(ranks: int, slots: int, slot_bytes: int, ring_bytes: int) -> int: ...

class Handle:
    def wait(self, limit_s: float = -1.0) -> bool: ...
    def is_over(self) -> bool: ...
    @property
    def error(self) -> str: ...
    @property
    def source(self) -> int: ...

class Endpoint:
    def __init__(
        self,
        fd: int,
        rank: int,
        slots: int,
        slot_bytes: int,
        ring_bytes: int,
        names: Sequence[int],
        may_spin: bool,
        reduce: int,
    ) -> None: ...
    def collective(
        self,
        kind: int,
        dtype: int,
        op: int,
        root: int,
        bytes: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        timeout_s: float,
        is_async: bool,
    ) -> Handle | None: ...
    def all_to_all(
        self,
        dtype: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        input_bytes: Sequence[int],
        output_bytes: Sequence[int],
        timeout_s: float,
        is_async: bool,
    ) -> Handle | None: ...
    def message(
        self, is_send: bool, peer: int, tag: int, data: int, bytes: int, timeout_s: float, is_async: bool
    ) -> Handle: ...
    def failure(self) -> str: ...
    def is_forked(self) -> bool: ...
    def fail(self, text: str) -> None: ...
    def close(self, drain_s: float) -> None: ...
