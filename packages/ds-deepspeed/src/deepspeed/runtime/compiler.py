"""Whether torch compiles here."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.utils.compiling": "is_compile_supported is_compiling disable enable",
    },
    waiting={
        "ds-compile": "compiled_autograd",
    },
)
