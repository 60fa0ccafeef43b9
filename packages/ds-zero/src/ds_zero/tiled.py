"""A linear layer cut into a grid of smaller ones, each of which ZeRO-3 fetches and releases by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ds_core.errors import ConfigError

__all__ = ["TiledLinear", "TiledLinearReturnBias"]


class TiledLinear(nn.Module):
    """`linear_cls(in_features, out_features)` as `out_splits` rows of `in_splits` tiles; memory at once is one tile's.

    ``tiles[o][i]`` maps input part i to output part o; the last tile of a row has the bias. Features that do not divide
    evenly give the first parts one more. The result is that of one linear up to the order of additions: with n =
    in_features, it differs by at most ``2 * (n + 1) * eps * (abs(x) @ abs(weight).T + abs(bias))`` for inputs and
    weights of one dtype whose rounding unit is eps.

    Args:
        in_splits, out_splits: how many parts, from 1 to the number of features.
        input_is_already_split: forward takes a sequence of `in_splits` tensors instead of one.
        combine_out_splits: forward returns one tensor; else a list of `out_splits` tensors.
        linear_cls: called as ``linear_cls(in_features, out_features, bias=..., **kwargs)`` for each tile.
        init_linear: a linear of the full size whose parameters the tiles start with.

    Raises:
        ConfigError: a number of splits is not between 1 and the features, or `init_linear` has another size or bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        in_splits: int = 1,
        out_splits: int = 1,
        input_is_already_split: bool = False,
        combine_out_splits: bool = True,
        linear_cls: Callable[..., nn.Module] = nn.Linear,
        init_linear: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.in_features: int = in_features
        self.out_features: int = out_features
        self.use_bias: bool = bias
        self.in_splits: int = in_splits
        self.out_splits: int = out_splits
        self.input_is_already_split: bool = input_is_already_split
        self.combine_out_splits: bool = combine_out_splits
        self.in_sizes: list[int] = _part_sizes("in", in_features, in_splits)
        self.out_sizes: list[int] = _part_sizes("out", out_features, out_splits)
        self.tiles: nn.ModuleList = nn.ModuleList(
            nn.ModuleList(
                linear_cls(columns, rows, bias=bias and index == in_splits - 1, **kwargs)
                for index, columns in enumerate(self.in_sizes)
            )
            for rows in self.out_sizes
        )
        if init_linear is not None:
            self.copy_params_from(init_linear)

    def forward(self, input_: torch.Tensor | Sequence[torch.Tensor]) -> Any:
        """The linear map of `input_` (..., in_features), or of its parts."""
        parts = self._parts_of(input_)
        outputs = [self._row(row, parts) for row in self.tiles]
        return torch.cat(outputs, dim=-1) if self.combine_out_splits else outputs

    @torch.no_grad()
    def copy_params_from(self, other: nn.Module) -> None:
        """Take over weight (out_features, in_features) and bias (out_features) of one linear of the full size.

        Raises:
            ConfigError: its sizes differ, or only one of the two has a bias.
        """
        weight, bias = other.weight, getattr(other, "bias", None)
        expected = (self.out_features, self.in_features)
        if not isinstance(weight, torch.Tensor) or tuple(weight.shape) != expected:
            shape = tuple(weight.shape) if isinstance(weight, torch.Tensor) else type(weight).__name__
            raise ConfigError(f"copy_params_from needs a weight of shape {expected}, got {shape}")
        if (bias is not None) != self.use_bias:
            has, wants = ("has a", "bias=False") if bias is not None else ("has no", "bias=True")
            raise ConfigError(f"the linear to copy from {has} bias and this TiledLinear has {wants}; make them agree")
        for row, weight_rows in zip(self.tiles, weight.split(self.out_sizes), strict=True):
            for tile, part in zip(row, weight_rows.split(self.in_sizes, dim=1), strict=True):  # type: ignore[call-overload]
                tile.weight.copy_(part)
        if isinstance(bias, torch.Tensor):
            for row, part in zip(self.tiles, bias.split(self.out_sizes), strict=True):
                row[-1].bias.copy_(part)  # type: ignore[index]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.use_bias}"

    def _parts_of(self, input_: torch.Tensor | Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if not self.input_is_already_split:
            if not isinstance(input_, torch.Tensor) or input_.shape[-1] != self.in_features:
                found = f"shape {tuple(input_.shape)}" if isinstance(input_, torch.Tensor) else type(input_).__name__
                raise ConfigError(f"TiledLinear takes a tensor of {self.in_features} features last, got {found}")
            parts: Sequence[torch.Tensor] = input_.split(self.in_sizes, dim=-1)
            return parts
        widths = [] if isinstance(input_, torch.Tensor) else [part.shape[-1] for part in input_]
        if widths != self.in_sizes or isinstance(input_, torch.Tensor):
            raise ConfigError(
                f"with input_is_already_split TiledLinear takes parts of {self.in_sizes} features, got "
                f"{widths or type(input_).__name__}"
            )
        return input_

    def _row(self, row: Any, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        total: torch.Tensor = row[0](parts[0])
        for tile, part in zip(row[1:], parts[1:], strict=True):
            total = total + tile(part)
        return total


class TiledLinearReturnBias(TiledLinear):
    """A `TiledLinear` of linears that return ``(output, bias)``, as Megatron's do when they skip adding the bias.

    forward returns ``(output, bias)`` too, both combined or both lists of `out_splits`; the bias is None when the tiles
    return None for it.
    """

    def forward(self, input_: torch.Tensor | Sequence[torch.Tensor]) -> tuple[Any, Any]:
        """The linear map without its bias, and the bias."""
        parts = self._parts_of(input_)
        outputs: list[torch.Tensor] = []
        biases: list[torch.Tensor | None] = []
        for row in self.tiles:
            results = [tile(part) for tile, part in zip(row, parts, strict=True)]  # type: ignore[call-overload]
            outputs.append(sum((output for output, _ in results[1:]), start=results[0][0]))
            biases.append(results[-1][1])
        kept = [bias for bias in biases if bias is not None]
        if not self.combine_out_splits:
            return outputs, biases if kept else None
        return torch.cat(outputs, dim=-1), torch.cat(kept, dim=-1) if kept else None


def _part_sizes(which: str, features: int, splits: int) -> list[int]:
    """Sizes of `splits` parts of `features`, the larger ones first."""
    if not 1 <= splits <= features or splits != int(splits):
        raise ConfigError(
            f"{which}_splits must be a whole number from 1 to {which}_features={features}, got {splits!r}"
        )
    small, more = divmod(features, splits)
    return [small + 1] * more + [small] * (splits - more)
