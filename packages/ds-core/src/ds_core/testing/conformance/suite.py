"""The suite without a file: ``DS_ACCELERATOR=NAME pytest --pyargs ds_core.testing.conformance.suite``."""

from __future__ import annotations

from ds_core.testing.conformance import accelerator_suite

test_conformance = accelerator_suite()
