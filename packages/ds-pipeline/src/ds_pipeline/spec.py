"""Layers described before they are made, so that a rank makes only those of its own stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ds_pipeline.errors import PipelineError

__all__ = ["LayerSpec", "TiedLayerSpec"]


class LayerSpec:
    """A layer to be made later, by the ranks that need it.

    Args:
        typename: a subclass of torch.nn.Module, or a callable that returns a layer.
        module_args: its positional arguments.
        module_kwargs: its keyword arguments.

    Raises:
        PipelineError: `typename` cannot be called.
    """

    def __init__(self, typename: Any, *module_args: Any, **module_kwargs: Any) -> None:
        if not callable(typename) or isinstance(typename, nn.Module):
            raise PipelineError(
                f"LayerSpec takes a class or a function that makes a layer, got {typename!r}; "
                "put a layer that is made already into the list as it is"
            )
        self.typename: Callable[..., Any] = typename
        self.module_args: tuple[Any, ...] = module_args
        self.module_kwargs: dict[str, Any] = module_kwargs

    @property
    def title(self) -> str:
        """Name of what is made; `type:` partitions compare it."""
        return str(getattr(self.typename, "__name__", type(self.typename).__name__))

    def build(self) -> Any:
        """The layer, made now."""
        return self.typename(*self.module_args, **self.module_kwargs)

    def __repr__(self) -> str:
        given = [repr(value) for value in self.module_args]
        given += [f"{name}={value!r}" for name, value in self.module_kwargs.items()]
        return f"{self.title}({', '.join(given)})"


class TiedLayerSpec(LayerSpec):
    """A layer that is used in several places of the model and is one everywhere: its first description makes it.

    Args:
        key: layers of one key are one module.
        typename: as in `LayerSpec`; the same for all layers of a key.
        forward_fn: called with the module and the input in place of the module itself, where it is used differently.
        tied_weight_attr: names of the module's weights that must be there; every parameter of it is shared.
    """

    def __init__(
        self,
        key: str,
        typename: Any,
        *module_args: Any,
        forward_fn: Callable[[Any, Any], Any] | None = None,
        tied_weight_attr: str | Sequence[str] = ("weight",),
        **module_kwargs: Any,
    ) -> None:
        super().__init__(typename, *module_args, **module_kwargs)
        self.key: str = key
        self.forward_fn: Callable[[Any, Any], Any] | None = forward_fn
        self.tied_weight_attr: list[str] = (
            [tied_weight_attr] if isinstance(tied_weight_attr, str) else list(tied_weight_attr)
        )

    def weights(self, module: nn.Module) -> list[torch.Tensor]:
        """The weights that are named as tied.

        Raises:
            PipelineError: one is not there.
        """
        found = []
        for name in self.tied_weight_attr:
            value: Any = module
            for part in name.split("."):
                value = getattr(value, part, None)
            if not isinstance(value, torch.Tensor):
                raise PipelineError(
                    f"tied layer {self.key!r} ({type(module).__name__}) has no weight {name!r}; name the weights it "
                    f"has in tied_weight_attr: {', '.join(name for name, _ in module.named_parameters()) or 'none'}"
                )
            found.append(value)
        return found

    def __repr__(self) -> str:
        return f"tied {self.key!r}: {super().__repr__()}"
