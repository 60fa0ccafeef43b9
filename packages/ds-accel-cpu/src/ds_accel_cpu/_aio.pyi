from collections.abc import Callable

def refusal() -> str: ...

class Transfer:
    def wait(self) -> None: ...
    @property
    def done(self) -> bool: ...
    @property
    def code(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def direct_refused(self) -> bool: ...

class Engine:
    def __init__(
        self,
        *,
        lanes: int,
        depth: int,
        block_bytes: int,
        overlap: bool,
        single_submit: bool,
        buffers: int,
        before: Callable[[bool, int, int, int], int] | None,
    ) -> None: ...
    def begin(
        self,
        *,
        memory: int,
        offset: int,
        nbytes: int,
        writes: bool,
        direct_fd: int,
        cached_fd: int,
        runs: list[tuple[int, list[tuple[int, int, int]]]],
    ) -> Transfer: ...
    def set_buffer(self, index: int, memory: int, nbytes: int) -> bool: ...
    def finish(self) -> None: ...
    def figures(self) -> list[tuple[int, int, int, int]]: ...
