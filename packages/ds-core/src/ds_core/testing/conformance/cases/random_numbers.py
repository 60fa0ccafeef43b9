"""Level 3: seeds, states of the generator, and dropout that repeats: what makes a resumed run the same run."""

from __future__ import annotations

from ds_core.testing.conformance.case import Group, Needs
from ds_core.testing.conformance.kit import Broken, Kit
from ds_core.testing.conformance.lazy import torch

__all__ = ["GROUPS"]

RANDOM = Group("random", level=3)
GROUPS = (RANDOM,)


def _draw(kit: Kit, numel: int = 64) -> torch.Tensor:
    return torch.randn(numel, device=kit.device).cpu()


@RANDOM.case("manual_seed(s) begins the same numbers each time, and other numbers for another seed")
def seed_begins_a_stream(kit: Kit) -> None:
    found = []
    for seed in (5, 5, 6):
        kit.accelerator.manual_seed(seed)
        found.append(_draw(kit))
    kit.expect_same(found[1], found[0], "numbers after the same seed")
    kit.expect(not torch.equal(found[0], found[2]), "other numbers after another seed", "the same")


@RANDOM.case("numbers go on: a second draw differs from the first")
def stream_goes_on(kit: Kit) -> None:
    kit.accelerator.manual_seed(5)
    kit.expect(not torch.equal(_draw(kit), _draw(kit)), "other numbers at the second draw", "the same")


@RANDOM.case("rng_state() is a host tensor of bytes, and its own copy: drawing does not change it")
def state_is_a_host_tensor(kit: Kit) -> None:
    state = kit.accelerator.rng_state()
    kit.expect(state.device.type == "cpu" and state.dtype == torch.uint8, "bytes on the host", state.dtype)
    before = state.clone()
    _draw(kit)
    kit.expect_same(state, before, "a state that was taken, after a draw")


@RANDOM.case("set_rng_state puts back what rng_state gave: the same numbers follow, however many were drawn between")
def state_comes_back(kit: Kit) -> None:
    kit.accelerator.manual_seed(11)
    _draw(kit, 7)
    state = kit.accelerator.rng_state()
    first = [_draw(kit, n) for n in (3, 64, 1000)]
    kit.accelerator.set_rng_state(state)
    second = [_draw(kit, n) for n in (3, 64, 1000)]
    for at, (wanted, found) in enumerate(zip(first, second, strict=True)):
        kit.expect_same(found, wanted, f"draw {at} after set_rng_state")
    kit.expect(not torch.equal(_draw(kit), _draw(kit)), "numbers that go on", "the same")


@RANDOM.case("a state survives a seed between: manual_seed, then set_rng_state, goes on from the state")
def state_beats_a_later_seed(kit: Kit) -> None:
    kit.accelerator.manual_seed(1)
    _draw(kit)
    state, wanted = kit.accelerator.rng_state(), _draw(kit)
    kit.accelerator.manual_seed(2)
    kit.accelerator.set_rng_state(state)
    kit.expect_same(_draw(kit), wanted, "numbers after set_rng_state")


@RANDOM.case("a state that went through bytes, as in a checkpoint, is as good")
def state_survives_a_file(kit: Kit) -> None:
    kit.accelerator.manual_seed(3)
    state = kit.accelerator.rng_state()
    wanted = _draw(kit)
    path = kit.folder / "state"
    path.write_bytes(bytes(state.tolist()))
    kit.accelerator.set_rng_state(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8))
    kit.expect_same(_draw(kit), wanted, "numbers after a state that was read from a file")


@RANDOM.case("dropout repeats with the state: what recomputation of activations relies on")
def dropout_repeats(kit: Kit) -> None:
    x = torch.ones(4000, device=kit.device)
    state = kit.accelerator.rng_state()
    first = torch.nn.functional.dropout(x, 0.25).cpu()
    kit.accelerator.set_rng_state(state)
    kit.expect_same(torch.nn.functional.dropout(x, 0.25), first, "dropout after set_rng_state")
    kept = float((first != 0).float().mean())
    kit.expect(0.7 < kept < 0.8, "about 3/4 of the elements kept", kept)
    kit.expect_close(first[first != 0], torch.full((int((first != 0).sum()),), 4 / 3), "what is kept, scaled", 1e-6)


@RANDOM.case(
    "torch.utils.checkpoint recomputes with the same dropout: it keeps the generator's state where the device's torch "
    "module has _initialized = True, get_rng_state, set_rng_state and device"
)
def recomputation_repeats(kit: Kit) -> None:
    from torch.utils.checkpoint import checkpoint

    found = []
    for recompute in (False, True):
        kit.accelerator.manual_seed(9)
        x = torch.ones(500, device=kit.device, requires_grad=True)
        y = checkpoint(_noisy, x, use_reentrant=False) if recompute else _noisy(x)
        y.sum().backward()
        assert x.grad is not None
        found.append(x.grad.cpu())
    kit.expect_same(found[1], found[0], "the gradient with recomputation")


def _noisy(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.dropout(torch.tanh(x * 2), 0.5) * x


@RANDOM.case("every device has a stream of its own", Needs(devices=2))
def devices_draw_apart(kit: Kit) -> None:
    accelerator = kit.accelerator
    states = [accelerator.rng_state(index) for index in (0, 1)]
    torch.randn(10, device=accelerator.device(1))
    kit.expect_same(accelerator.rng_state(0), states[0], "device 0's state after a draw on device 1")
    moved = not torch.equal(accelerator.rng_state(1), states[1])
    kit.expect(moved, "device 1's state to change with a draw there", "the same state")


@RANDOM.case("uniform, normal, integer and Bernoulli numbers have the ranges and moments of their distributions")
def distributions(kit: Kit) -> None:
    kit.accelerator.manual_seed(0)
    n = 100_000
    uniform = torch.rand(n, device=kit.device).cpu()
    kit.expect(bool(((uniform >= 0) & (uniform < 1)).all()), "rand in [0, 1)", (uniform.min(), uniform.max()))
    _near(kit, "mean of rand", float(uniform.mean()), 0.5, 0.01)
    normal = torch.randn(n, device=kit.device).cpu()
    _near(kit, "mean of randn", float(normal.mean()), 0.0, 0.02)
    _near(kit, "standard deviation of randn", float(normal.std()), 1.0, 0.02)
    _near(kit, "mean of bernoulli", float(torch.full((n,), 0.3, device=kit.device).bernoulli().mean().cpu()), 0.3, 0.01)


@RANDOM.case(
    "randint and randperm give whole numbers of the range, each of a permutation once", Needs(dtypes=("int64",))
)
def whole_numbers(kit: Kit) -> None:
    drawn = torch.randint(3, 9, (2000,), device=kit.device).cpu()
    kit.expect(sorted(set(drawn.tolist())) == [3, 4, 5, 6, 7, 8], "3 to 8", sorted(set(drawn.tolist())))
    permuted = torch.randperm(500, device=kit.device).cpu()
    kit.expect(sorted(permuted.tolist()) == list(range(500)), "each of 0 to 499 once", permuted[:8].tolist())


def _near(kit: Kit, what: str, found: float, wanted: float, bound: float) -> None:
    if abs(found - wanted) > bound:
        raise Broken(f"{what}: {wanted:g} within {bound:g}", f"{found:g}")
