class Level:
    @property
    def name(self) -> str: ...
    @property
    def usable(self) -> bool: ...
    @property
    def reason(self) -> str: ...

def levels() -> list[Level]: ...
def features() -> list[str]: ...
def worker_count() -> int: ...
def borrow_threads(gomp_parallel: int) -> None: ...
def is_borrowing() -> bool: ...

class Adam:
    def __init__(self, entry: int) -> None: ...
    @property
    def name(self) -> str: ...
    def __call__(
        self,
        param: int,
        grad: int,
        exp_avg: int,
        exp_avg_sq: int,
        copy_out: int,
        grad_factor: int,
        numel: int,
        param_dtype: int,
        grad_dtype: int,
        state_dtype: int,
        copy_dtype: int,
        adamw: bool,
        lerp_weight: float,
        beta2: float,
        square_weight: float,
        decay: float,
        weight_decay: float,
        eps: float,
        correction2_sqrt: float,
        negative_step_size: float,
        rounding_seed: int,
        rounding_offset: int,
        threads: int,
        /,
    ) -> None: ...

class SumOfSquares:
    def __init__(self, entry: int) -> None: ...
    @property
    def name(self) -> str: ...
    def __call__(self, x: int, out: int, numel: int, dtype: int, threads: int, /) -> None: ...

class RmsNormForward:
    def __init__(self, entry: int) -> None: ...
    @property
    def name(self) -> str: ...
    def __call__(
        self,
        x: int,
        weight: int,
        y: int,
        rstd: int,
        rows: int,
        columns: int,
        dtype: int,
        weight_dtype: int,
        eps: float,
        threads: int,
        /,
    ) -> None: ...

class RmsNormBackward:
    def __init__(self, entry: int) -> None: ...
    @property
    def name(self) -> str: ...
    def __call__(
        self,
        dy: int,
        x: int,
        weight: int,
        rstd: int,
        dx: int,
        dweight: int,
        rows: int,
        columns: int,
        dtype: int,
        weight_dtype: int,
        threads: int,
        /,
    ) -> None: ...

class LayerNormForward:
    def __init__(self, entry: int) -> None: ...
    @property
    def name(self) -> str: ...
    def __call__(
        self,
        x: int,
        weight: int,
        bias: int,
        y: int,
        mean: int,
        rstd: int,
        rows: int,
        columns: int,
        dtype: int,
        weight_dtype: int,
        eps: float,
        threads: int,
        /,
    ) -> None: ...

class LayerNormBackward:
    def __init__(self, entry: int) -> None: ...
    @property
    def name(self) -> str: ...
    def __call__(
        self,
        dy: int,
        x: int,
        weight: int,
        mean: int,
        rstd: int,
        dx: int,
        dweight: int,
        dbias: int,
        rows: int,
        columns: int,
        dtype: int,
        weight_dtype: int,
        threads: int,
        /,
    ) -> None: ...

class QuantizeInt8:
    def __init__(self, entry: int) -> None: ...
    @property
    def name(self) -> str: ...
    def __call__(
        self,
        x: int,
        q: int,
        scales: int,
        numel: int,
        group_size: int,
        dtype: int,
        threads: int,
        /,
    ) -> None: ...

class DequantizeInt8:
    def __init__(self, entry: int) -> None: ...
    @property
    def name(self) -> str: ...
    def __call__(
        self,
        q: int,
        scales: int,
        x: int,
        numel: int,
        group_size: int,
        dtype: int,
        threads: int,
        /,
    ) -> None: ...
