from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from ds_core.plugins.requirements import _plainly_met, unmet_requirement

INSTALLED = {"ds-core": "1.4.2", "torch": "2.13.0+cpu"}


@pytest.mark.parametrize(
    "line",
    [
        "ds-core~=1.4",
        "ds_core >=1.0,<2",
        "torch>=2.10",
        "torch (>=2.10)",
        "torch!=2.12.0",
        "torch",
        "numpy>=99",
        "torchvision>=99",
        'torch>=99; python_version < "3"',
        'torch>=99; extra == "nightly"',
    ],
)
def test_what_is_installed_fits(line: str) -> None:
    assert unmet_requirement("acme 0.9", [line], INSTALLED.get) == ""


@pytest.mark.parametrize("line", ["ds-core~=1.5", "ds-core>=2", "ds-core<1.4", "ds-core==1.4", "ds-core~=2.0"])
def test_a_core_that_does_not_fit_is_named_with_both_versions(line: str) -> None:
    reason = unmet_requirement("acme 0.9", ["numpy", line], INSTALLED.get)
    assert reason == (
        f"acme 0.9 needs {line}, but ds-core 1.4.2 is installed. Run: pip install '{line}', or install another version "
        "of acme that fits ds-core 1.4.2"
    )


def test_a_wheel_that_is_not_installed_comes_with_the_command() -> None:
    assert unmet_requirement("acme 0.9", ["torch>=2.10"], {}.get) == (
        "acme 0.9 needs torch>=2.10, which is not installed. Run: pip install 'torch>=2.10'"
    )


def test_a_requirement_that_cannot_be_read_is_said() -> None:
    assert "cannot be read: 'torch >< 2'" in unmet_requirement("acme 0.9", ["torch >< 2"], INSTALLED.get)


@given(
    st.sampled_from([">=", "~="]),
    st.lists(st.integers(0, 3), min_size=2, max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.sampled_from(["", "+cpu"]),
)
def test_the_fast_yes_is_what_packaging_says(operator: str, want: list[int], have: list[int], local: str) -> None:
    line = f"torch{operator}{'.'.join(map(str, want))}"
    version = ".".join(map(str, have)) + local
    assert _plainly_met(line, version) == Requirement(line).specifier.contains(version)
