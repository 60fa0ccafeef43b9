"""Stochastic rounding from a counter-based generator, in torch integer ops: the definition that kernels reproduce.

Element `i` of a tensor draws 32 random bits from (seed, stream, offset + i) and from nothing else, so neither threads
nor the way a tensor is cut into pieces change a result. `stream` tells the tensors of one call apart.

Source: seed mixing as in G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014;
the 32-bit finalizer is found by C. Wellons' hash prospector (public domain).
"""

from __future__ import annotations

import torch

__all__ = ["mix32", "random_bits", "round_stochastically", "store", "stream_keys"]

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF


def stream_keys(seed: int, stream: int) -> tuple[int, int]:
    """The two 32-bit keys of one tensor of one call."""
    z = (seed + (stream + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    z ^= z >> 31
    return z & _MASK32, z >> 32


def mix32(x: torch.Tensor) -> torch.Tensor:
    """Bijective scrambling of 32-bit values held in int64."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)


def random_bits(seed: int, stream: int, start: int, numel: int, device: torch.device) -> torch.Tensor:
    """32 random bits for elements `start` to `start + numel`, as int64."""
    key0, key1 = stream_keys(seed, stream)
    index = torch.arange(start, start + numel, dtype=torch.int64, device=device)
    mixed = mix32((index & _MASK32) ^ key0) + ((index >> 32) ^ key1)
    return mix32(mixed & _MASK32)


def round_stochastically(x: torch.Tensor, dtype: torch.dtype, random: torch.Tensor) -> torch.Tensor:
    """float32 `x` rounded to bfloat16 or float16, up with a probability equal to the discarded fraction.

    Infinities and NaNs are kept. In float16's subnormal range the fraction is resolved to 13 bits.
    """
    bits = x.contiguous().view(torch.int32).to(torch.int64) & _MASK32
    if dtype == torch.bfloat16:
        rounded = (bits + (random & 0xFFFF)) >> 16
        result = torch.where((bits & 0x7F800000) == 0x7F800000, x.to(dtype).view(torch.int16).to(torch.int64), rounded)
    else:
        result = _half_bits(x, bits, random)
        special = x.to(dtype).view(torch.int16).to(torch.int64)
        result = torch.where((bits & 0x7F800000) == 0x7F800000, special, result)
    result = result & 0xFFFF
    signed = torch.where(result >= 0x8000, result - 0x10000, result)
    return signed.to(torch.int16).view(dtype)


def _half_bits(x: torch.Tensor, bits: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    magnitude = bits & 0x7FFFFFFF
    low = random & 0x1FFF
    small = magnitude < 0x38800000
    normal = (magnitude - 0x38000000 + low) >> 13
    steps = torch.where(small, x.abs(), 0.0) * 2.0**24 + low.to(torch.float32) * 2.0**-13
    rounded = torch.where(small, steps.to(torch.int64), normal).clamp(max=0x7C00)
    return ((bits >> 16) & 0x8000) | rounded


def store(x: torch.Tensor, out: torch.Tensor, seed: int, stream: int, start: int) -> None:
    """Writes float32 `x` into `out`: stochastically for a low-precision `out` and a seed >= 0, else to nearest even."""
    if seed < 0 or out.dtype == torch.float32:
        out.copy_(x)
    else:
        out.copy_(round_stochastically(x, out.dtype, random_bits(seed, stream, start, x.numel(), x.device)))
