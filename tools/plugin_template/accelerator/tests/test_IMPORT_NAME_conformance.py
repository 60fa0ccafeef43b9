"""The device against ds-core's contract, level by level; ``ds accel test {{key}}`` says the same with more words."""

from __future__ import annotations

import pytest

from {{import}}.probe import probe
from ds_core.testing.conformance import accelerator_suite

HERE = probe()
pytestmark = pytest.mark.skipif(not HERE.usable, reason=HERE.reason or "the device is here")

test_conformance = accelerator_suite("{{key}}", level=4)
