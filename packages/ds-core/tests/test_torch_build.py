from __future__ import annotations

import subprocess
import sys

import torch

from ds_core.accelerator.torch_build import TorchBuild, read_torch_build, torch_build

CUDA = """
from typing import Optional
__all__ = ['__version__', 'debug', 'cuda']
__version__ = '2.13.0+cu130'
debug = False
cuda: Optional[str] = '13.0'
git_version = 'abc'
hip: Optional[str] = None
"""


def test_facts_of_a_build_for_cuda() -> None:
    assert read_torch_build(CUDA) == TorchBuild("2.13.0+cu130", cuda="13.0")


def test_facts_of_a_build_for_rocm() -> None:
    text = CUDA.replace("'13.0'", "None").replace("hip: Optional[str] = None", "hip = '7.1.1'")
    assert read_torch_build(text) == TorchBuild("2.13.0+cu130", hip="7.1.1")


def test_the_installed_torch_says_the_same_when_it_is_imported() -> None:
    found = torch_build()
    assert (found.version, found.cuda, found.hip) == (str(torch.__version__), torch.version.cuda, torch.version.hip)


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from ds_core.accelerator import torch_build as t; t.torch_build(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
