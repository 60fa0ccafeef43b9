"""Every documented name of DeepSpeed is at its path, or says which wheel will bring it or why nothing does."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

LISTED = [
    (path, name)
    for line in (Path(__file__).parent / "public_names.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for path, _, names in [line.partition(":")]
    for name in names.split()
]
REASONS = ("it will come with ", "is not here: ", "needs the wheel ")


def from_import(path: str, name: str) -> object:
    space: dict = {}
    exec(f"from {path} import {name} as found", space)
    return space["found"]


@pytest.mark.parametrize("path", sorted({path for path, _ in LISTED}))
def test_names_of_a_module_resolve_or_say_why_not(path):
    unexplained = []
    for name in (name for at, name in LISTED if at == path):
        try:
            from_import(path, name)
        except ImportError as error:
            if not any(reason in str(error) for reason in REASONS):
                unexplained.append(f"{name}: {error}")
    assert not unexplained, "\n".join(unexplained)


def test_most_of_what_is_released_resolves():
    """Guards the table itself: a door that refuses everything would pass the test above."""
    served = 0
    for path, name in LISTED:
        try:
            from_import(path, name)
        except ImportError:
            continue
        served += 1
    assert served > 0.6 * len(LISTED)


ARGUMENTS = [
    tuple(part.strip() for part in line.split(":"))
    for line in (Path(__file__).parent / "public_arguments.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("path", sorted({path for path, _, _ in ARGUMENTS}))
def test_functions_and_classes_take_the_documented_arguments(path):
    import deepspeed

    missing = []
    for at, name, arguments in ARGUMENTS:
        if at == path:
            found = getattr(deepspeed.DeepSpeedEngine, name) if path == "engine" else from_import(path, name)
            known = inspect.signature(found).parameters
            missing += [f"{name}({each}=)" for each in arguments.split() if each not in known]
    assert not missing


def test_init_and_engine_refuse_what_they_cannot_do():
    import torch

    import deepspeed

    with pytest.raises(deepspeed.DeepSpeedConfigError, match=r"Init\(param_swapper=\) is not in this version"):
        deepspeed.zero.Init(param_swapper=object())
    config = {"train_batch_size": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    engine = deepspeed.initialize(model=torch.nn.Linear(2, 2), config=config)[0]
    calls = {
        "ds-compile": [lambda: engine.register_compile_pass("name", print), engine.get_compile_time],
        "ds-data": [engine.random_ltd_initialize, lambda: engine.set_custom_curriculum_learning_schedule({})],
        "load_checkpoint reads experts": [engine.load_moe_state_dict],
        "times of gates": [lambda: engine.print_forward_breakdown(1.0)],
    }
    for reason, refused in calls.items():
        for call in refused:
            with pytest.raises(RuntimeError if " " in reason else ValueError, match=reason):
                call()


def test_weights_are_loaded_by_a_function_of_the_users():
    import torch

    import deepspeed

    config = {"train_batch_size": 1, "bf16": {"enabled": True}, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    engine = deepspeed.initialize(model=torch.nn.Linear(2, 2), config=config)[0]

    def load(src, dst):
        dst.weight.data.copy_(src["old.name"])

    engine.load_module_state_dict({"old.name": torch.full((2, 2), 0.5)}, custom_load_fn=load, fetch_z3_params=False)
    assert torch.equal(deepspeed.utils.safe_get_full_fp32_param(engine.module.weight), torch.full((2, 2), 0.5))


def test_asking_for_a_missing_name_tells_the_wheel_and_hasattr_says_no():
    import deepspeed

    with pytest.raises(ImportError, match="it will come with the wheel ds-inference"):
        from_import("deepspeed", "init_inference")
    with pytest.raises(AttributeError, match="it will come with the wheel ds-tensor"):
        _ = deepspeed.tp_model_init
    assert not hasattr(deepspeed, "init_inference")
    with pytest.raises(ImportError, match="it will come with the wheel ds-tensor"):
        from_import("deepspeed.module_inject", "LinearLayer")
    with pytest.raises(ImportError, match="AutoEP is not here: put expert_parallel into the config"):
        from_import("deepspeed.module_inject.auto_ep", "AutoEP")
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        from_import("deepspeed", "nonsense")
    with pytest.raises(ImportError, match=r"deepspeed.sequence.*ds-sequence"):
        importlib.import_module("deepspeed.sequence.layer")


def test_importing_it_imports_no_torch_and_says_nothing():
    program = (
        "import sys, json, deepspeed, deepspeed.zero, deepspeed.utils, deepspeed.runtime.lr_schedules;"
        "print(json.dumps([name in sys.modules for name in ('torch', 'ds_core.engine', 'pydantic')]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == [False, False, False]
    assert done.stderr == ""


def test_the_distribution_is_found_as_libraries_look_for_it():
    import importlib.metadata

    from packaging.version import Version

    import deepspeed

    found = importlib.metadata.metadata("deepspeed")
    assert found["Version"] == deepspeed.__version__
    assert Version(deepspeed.__version__) > Version("0.19.8")
    assert Version(deepspeed.__version__).public == "0.19.8"
