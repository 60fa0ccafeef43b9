"""Factories for the classes of ``torch.optim``, and DeepSpeed's parameter names translated to torch's.

Where torch has a fused kernel for the device and dtype, it is used unless the config says ``fused`` or ``foreach``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ds_core.errors import ConfigError, ModelError
from ds_core.hooks import OptimizerEntry
from ds_core.optim.groups import normalize, tensors_of
from ds_core.optim.params import accepted, check, required

__all__ = [
    "TorchFactory",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "unlisted",
]

WHERE = "optimizer.params"

_FUSED_DEVICES: Mapping[str, frozenset[str]] = {
    "Adam": frozenset({"cpu", "cuda", "xpu"}),
    "AdamW": frozenset({"cpu", "cuda", "xpu"}),
    "SGD": frozenset({"cpu", "cuda", "xpu"}),
    "Adagrad": frozenset({"cpu"}),
}
"""Device types on which torch has a fused kernel of the class."""


@dataclass(frozen=True, slots=True)
class TorchFactory:
    """Builds one class of ``torch.optim`` after checking every parameter against its signature."""

    class_name: str

    def __call__(self, param_groups: Iterable[Any], **params: Any) -> torch.optim.Optimizer:
        """The optimizer.

        Raises:
            ConfigError: an unknown parameter, a missing one, or a value torch does not take.
            ModelError: there is nothing to optimize.
        """
        return _build(self.class_name, self.class_name, normalize(param_groups), params)


sgd = TorchFactory("SGD")
adagrad = TorchFactory("Adagrad")
rmsprop = TorchFactory("RMSprop")
adadelta = TorchFactory("Adadelta")
adamax = TorchFactory("Adamax")
nadam = TorchFactory("NAdam")
radam = TorchFactory("RAdam")
asgd = TorchFactory("ASGD")
rprop = TorchFactory("Rprop")
adafactor = TorchFactory("Adafactor")

_LOW_PRECISION = (torch.float16, torch.bfloat16)
_ADAM_PARAMS: Mapping[str, Any] = {"adam_w_mode": bool, "bias_correction": bool, "fp32_optimizer_states": bool}


def adam(param_groups: Iterable[Any], **params: Any) -> torch.optim.Optimizer:
    """Torch's Adam as a DeepSpeed config means it: weight decay is decoupled unless ``adam_w_mode`` is false.

    Besides torch's own parameters it takes ``adam_w_mode`` (default true), ``bias_correction`` (torch's always
    corrects, so only true) and ``fp32_optimizer_states`` (torch keeps states in the parameter's dtype, so true needs
    fp32 parameters). ``weight_decay`` left out is 0.
    """
    decoupled = params.pop("adam_w_mode", True)
    if not isinstance(decoupled, bool):
        raise ConfigError(f"{WHERE}.adam_w_mode of Adam must be true or false, got {decoupled!r}.")
    return _adam("Adam", "AdamW" if decoupled else "Adam", param_groups, params)


def adamw(param_groups: Iterable[Any], **params: Any) -> torch.optim.Optimizer:
    """Torch's AdamW with the parameters of `adam`; ``weight_decay`` left out is 0, as for every AdamW of a config."""
    if params.pop("adam_w_mode", True) is not True:
        raise ConfigError(f"{WHERE}.adam_w_mode of AdamW can only be true; for coupled decay use type Adam with false.")
    return _adam("AdamW", "AdamW", param_groups, params)


def muon(param_groups: Iterable[Any], **params: Any) -> torch.optim.Optimizer:
    """Muon for matrices with AdamW for the rest; see `ds_core.optim.muon.MuonWithAuxAdam` for the parameters."""
    from ds_core.optim.muon import MuonWithAuxAdam

    groups = normalize(param_groups)
    return MuonWithAuxAdam(groups, **_checked("Muon", accepted(MuonWithAuxAdam) or {}, params))


def unlisted(name: str) -> OptimizerEntry | None:
    """An entry for a class of ``torch.optim`` that the registry does not list, or None.

    Nothing is known of how it updates, so it does not count as elementwise.
    """
    for class_name, found in vars(torch.optim).items():
        is_optimizer = isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
        if is_optimizer and found is not torch.optim.Optimizer and class_name.lower() == name.lower():
            return OptimizerEntry(class_name, factory=f"{__name__}:_unlisted_{class_name}", elementwise=False)
    return None


def __getattr__(name: str) -> TorchFactory:
    """Serves the references that `unlisted` gives out."""
    if name.startswith("_unlisted_"):
        return TorchFactory(name.removeprefix("_unlisted_"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _adam(owner: str, class_name: str, param_groups: Iterable[Any], params: Mapping[str, Any]) -> torch.optim.Optimizer:
    groups = normalize(param_groups)
    own = check(WHERE, owner, _ADAM_PARAMS, {key: value for key, value in params.items() if key in _ADAM_PARAMS})
    if own.get("bias_correction", True) is False:
        raise ConfigError(
            f"{WHERE}.bias_correction can not be false with torch's {class_name}, which always corrects. Remove it, or "
            "remove torch_adam where a native implementation serves the device."
        )
    rest = {key: value for key, value in params.items() if key not in _ADAM_PARAMS}
    optimizer = _build(owner, class_name, groups, {"weight_decay": 0.0, **rest}, also=_ADAM_PARAMS)
    if own.get("fp32_optimizer_states", False):
        _check_states_at_first_step(optimizer)
    return optimizer


def _check_states_at_first_step(optimizer: torch.optim.Optimizer) -> None:
    """Refuses low-precision parameters when the first step would make states of their dtype.

    Not earlier, because an engine puts its fp32 master weights in the place of the parameters after construction.
    """

    def before_step(stepping: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        handle.remove()
        low = sorted({str(t.dtype) for t in tensors_of(stepping.param_groups) if t.dtype in _LOW_PRECISION})
        if low:
            raise ConfigError(
                f"{WHERE}.fp32_optimizer_states cannot be true with torch's {type(stepping).__name__} over "
                f"{', '.join(low)} parameters: torch keeps its states in the parameter's dtype. Keep fp32 master "
                "weights, or set it to false."
            )

    handle = optimizer.register_step_pre_hook(before_step)


def _build(
    owner: str,
    class_name: str,
    groups: list[dict[str, Any]],
    params: Mapping[str, Any],
    also: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    cls = getattr(torch.optim, class_name)
    types = accepted(cls, skip=1) or {}
    checked = _checked(owner, {**types, **(also or {})}, params)
    missing = [key for key in required(cls) if key not in checked]
    if missing:
        raise ConfigError(f"{WHERE} of {owner} must also give {', '.join(missing)}.")
    if "fused" in types and checked.get("fused") is None and _may_fuse(class_name, groups, checked):
        checked["fused"] = True
    try:
        optimizer: torch.optim.Optimizer = cls(groups, **checked)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{WHERE} of {owner}: {error}") from error
    return optimizer


def _checked(owner: str, allowed: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    return check(WHERE, owner, allowed, params)


def _may_fuse(class_name: str, groups: list[dict[str, Any]], params: Mapping[str, Any]) -> bool:
    """Whether torch's fused kernel serves every tensor and nothing in the config asks for another one."""
    if any(params.get(key) for key in ("foreach", "differentiable", "capturable")):
        return False
    devices = _FUSED_DEVICES.get(class_name, frozenset())
    tensors = tensors_of(groups)
    if not tensors:
        raise ModelError(f"{class_name} was given no parameters to optimize.")
    return all(t.device.type in devices and t.is_floating_point() for t in tensors)
