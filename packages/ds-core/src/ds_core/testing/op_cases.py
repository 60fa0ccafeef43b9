"""The conformance cases of every op, and what runs them, for tests of wheels; see `ds_core.ops.conformance`."""

from __future__ import annotations

from ds_core.ops.conformance import Call, as_tuple, build, cases, check, check_kernel, compare, every

__all__ = ["Call", "as_tuple", "build", "cases", "check", "check_kernel", "compare", "every"]
