"""Estimates equal, byte for byte and call for call, what runs on real ranks hold and send."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ds_core.errors import ConfigError, ModelError
from ds_core.testing import run_ranks
from ds_zero.estimate import estimate

WIDTH = 22
STEPS = 4
SETTLED = 2


class Block(nn.Module):
    """Linears and adapters of odd sizes and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 31), nn.Linear(31, WIDTH)
        self.adapter_a, self.adapter_b = nn.Linear(WIDTH, 3, bias=False), nn.Linear(3, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return x + self.adapter_b(self.adapter_a(x))


class Net(nn.Module):
    """An embedding, which may be tied to the head, blocks, a scalar, an empty parameter and a buffer."""

    def __init__(self, tied: bool = False, frozen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(53, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, 53, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.register_buffer("scale", torch.ones(5))
        self.register_buffer("count", torch.ones(3, dtype=torch.int64), persistent=False)
        if frozen:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_("adapter" in name)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x).float().square().mean() * self.gain


def groups_of(model: nn.Module) -> list[dict]:
    """Two optimizer groups, one with its own momentum."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices, rest = [p for _, p in named if p.dim() > 1], [p for _, p in named if p.dim() < 2]
    return [{"params": matrices, "lr": 1e-2}, {"params": rest, "lr": 1e-3, "momentum": 0.0}]


def config_of(stage: int, cell: dict) -> dict:
    zero = {"stage": stage, "param_persistence_threshold": 100, **cell.get("zero", {})}
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": cell.get("accumulation", 1),
        "optimizer": {"type": cell.get("optimizer", "AdamW"), "params": {"lr": 1e-2, **cell.get("params", {})}},
        "zero_optimization": zero,
        **cell.get("config", {}),
    }


def storages(tensors) -> int:
    """Bytes of the distinct storages behind tensors."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}.values())


def weights_held(engine, space) -> dict[str, int]:
    shards, wholes, stand_ins = [], [], []
    for flat in space.groups:
        if hasattr(flat.values, "shards"):
            for shard, whole in zip(flat.values.shards, flat.values.wholes, strict=True):
                (shards if whole is None else wholes).append(shard if whole is None else whole)
            owned = [w.untyped_storage().data_ptr() for w in flat.values.wholes if w is not None]
            stand_ins += [p.data for p in flat.parameters if p.data.untyped_storage().data_ptr() not in owned]
        else:
            shards.append(flat.values.tensor)
    inside = {id(p) for flat in space.groups for p in flat.parameters}
    loose = [p.data for p in engine.module.parameters() if id(p) not in inside]
    return {
        "weights": storages(shards) + storages(loose),
        "small weights": storages(wholes),
        "stand-ins": storages(stand_ins),
        "buffers": storages(engine.module.buffers()),
    }


def gradients_held(space) -> int:
    """Bytes of gradients, reduced or not."""
    tensors = []
    for flat in space.flats:
        tensors += [incoming.buffer for incoming in flat.gradients._incoming if incoming is not None]
        tensors += [total.tensor for total in flat.gradients._totals if total is not None]
    return storages(tensors)


def gradients_moving(space) -> int:
    """Bytes of local gradients, filling or being reduced."""
    filling = [i.buffer for flat in space.flats for i in flat.gradients._incoming if i is not None]
    under_way = sum(
        entry.flat.layout.buckets[entry.index].numel * entry.flat.grad_dtype.itemsize
        for entry, _, _ in space.exchange._under_way
    )
    return storages(filling) + under_way


def optimizer_held(engine) -> dict[str, int]:
    inner = engine.optimizer.optimizer
    tensors = [t for state in inner.state.values() for t in state.values() if torch.is_tensor(t)]
    pieces = next(part for part in engine.parts if part.name == "optimizer").pieces
    return {
        "master weights": storages(piece.master for piece in pieces if piece.separate),
        "optimizer states": storages(t for t in tensors if t.dim()),
        "optimizer counters": storages(t for t in tensors if not t.dim()),
    }


def run_cells(stage: int, cells: list[dict]) -> list[tuple]:
    """For each cell: bytes by kind, gathered at most in elements, collectives of a step, gradients moving at most."""
    import torch.distributed as dist

    import ds_core
    from ds_core import comm

    found = []
    for cell in cells:
        model = Net(**cell.get("model", {}))
        parameters = groups_of(model) if cell.get("groups") else None
        engine = ds_core.initialize(model=model, config=config_of(stage, cell), model_parameters=parameters)[0]
        space = next(part for part in engine.parts if part.name == "weights")._space
        generator = torch.Generator().manual_seed(dist.get_rank())
        gradients = moving = 0

        def watch(parameter, space=space):
            nonlocal moving
            moving = max(moving, gradients_moving(space))

        hooks = [p.register_post_accumulate_grad_hook(watch) for p in model.parameters() if p.requires_grad]
        for step in range(STEPS):
            if step == SETTLED:
                comm.reset()
                if hasattr(space, "coordinator"):
                    space.coordinator.peak_numel = 0
            for _ in range(cell.get("accumulation", 1)):
                engine.backward(engine(torch.randint(0, 53, (2, 5), generator=generator)))
                gradients = max(gradients, gradients_held(space))
                engine.step()
        sent: dict[tuple[str, str], list[float]] = {}
        for row in engine.comm_report().rows:
            sums = sent.setdefault((row.op, row.scope), [0, 0, 0])
            for place, value in enumerate((row.calls, row.bytes_payload, row.bytes_sent)):
                sums[place] += value / (STEPS - SETTLED)
        held = {**weights_held(engine, space), "gradients": gradients, **optimizer_held(engine)}
        peak = space.coordinator.peak_numel if hasattr(space, "coordinator") else 0
        found.append((held, peak, sent, moving))
        for hook in hooks:
            hook.remove()
        engine.destroy()
    return found


BF16 = {"bf16": {"enabled": True}}
LOW = {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}
LOW_STATES = {"bf16": {**LOW["bf16"], "bf16_optimizer_states": True}}
CELLS = [
    {},
    {"config": BF16},
    {"config": BF16, "accumulation": 3},
    {"config": {**BF16, "data_types": {"grad_accum_dtype": "fp32"}}, "accumulation": 2},
    {"config": {**BF16, "communication_data_type": "fp32"}, "zero": {"reduce_bucket_size": 700}},
    {"config": {"fp16": {"enabled": True, "initial_scale_power": 4}}},
    {"config": LOW},
    {"config": LOW_STATES},
    {"config": BF16, "params": {"torch_adam": True}},
    {"optimizer": "SGD"},
    {"optimizer": "SGD", "params": {"momentum": 0.9}, "groups": True},
    {"optimizer": "RMSprop", "config": BF16},
    {"optimizer": "Lamb", "config": BF16},
    {"params": {"state_bits": 8, "state_block": 256}},
    {"model": {"tied": True}, "config": BF16},
    {"model": {"frozen": True}, "config": BF16},
    {"model": {"frozen": True}, "zero": {"param_persistence_threshold": 10}},
    {"config": {"torch_autocast": {"enabled": True}}},
    {"zero": {"reduce_scatter": False}},
    {"zero": {"overlap_comm": True}, "accumulation": 2},
    {"zero": {"overlap_comm": True}},
    {"zero": {"overlap_comm": False}},
    {"zero": {"param_persistence_threshold": 0}},
    {"zero": {"prefetch_bucket_size": 0}},
    {"zero": {"prefetch_bucket_size": 10_000}},
    {"zero": {"max_live_parameters": 1500}},
    {"zero": {"max_reuse_distance": 5000}},
    {"zero": {"module_granularity_threshold": 100}},
    {"zero": {"module_granularity_threshold": 1_000_000}},
]


def planned(stage: int, cell: dict, world: int, rank: int = 0, **options):
    model = Net(**cell.get("model", {}))
    parameters = groups_of(model) if cell.get("groups") else None
    return estimate(model, config_of(stage, cell), world, rank=rank, model_parameters=parameters, **options)


def by_scope(plan) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for row in plan.sent:
        sums = found.setdefault((row.op, row.scope), [0, 0, 0])
        for place, value in enumerate((row.calls, row.payload_bytes, row.sent_bytes)):
            sums[place] += value
    return found


@pytest.mark.ranks
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_holds_and_sends_what_the_estimate_says(stage, world):
    cells = CELLS if world == 2 else CELLS[1::3]
    for rank, answers in enumerate(run_ranks(run_cells, world, stage, cells, timeout_s=150)):
        for cell, (held, peak_numel, sent, moving) in zip(cells, answers, strict=True):
            plan = planned(stage, cell, world, rank)
            where = (stage, world, rank, cell)
            names = {kind: (kind, f"frozen {kind}") for kind in ("weights", "small weights")}
            assert {kind: plan.bytes_of(*names.get(kind, (kind,))) for kind in held} == held, where
            assert by_scope(plan) == sent, where
            size = 2 if "bf16" in cell.get("config", {}) or "fp16" in cell.get("config", {}) else 4
            assert plan.bytes_of("gathered weights") == peak_numel * size, where
            if moving and plan.bytes_of("gradients in flight") and stage >= 2:
                assert moving <= plan.bytes_of("gradients in flight"), where


@pytest.mark.parametrize("world", [2, 4])
def test_bytes_a_parameter_are_16_over_the_ranks_for_what_a_stage_shards(world):
    # All sizes divide by 64 x ranks, so there is no padding; nothing is small.
    shapes = {f"block.{i}.weight": (64 * world, 8) for i in range(3)}
    zero = {"param_persistence_threshold": 0}
    expected = {0: 16.0, 1: 4 + 12 / world, 2: 2 + 14 / world, 3: 16 / world}
    for stage, each in expected.items():
        plan = estimate(shapes, config_of(stage, {"config": BF16, "zero": zero}), world)
        assert plan.padding_bytes == 0
        assert plan.bytes_of("weights", "gradients", "master weights", "optimizer states") == each * plan.numel


def test_masters_without_padding_are_four_bytes_a_trained_parameter():
    cell = {"config": BF16, "model": {"tied": True}}
    for stage in range(4):
        plans = [planned(stage, cell, 4, rank) for rank in range(4)]
        rows = [row for plan in plans for row in plan.held if row.kind == "master weights"]
        assert any(row.padding_bytes for row in rows)
        copies = 1 if stage else 4
        assert sum(row.bytes - row.padding_bytes for row in rows) == copies * 4 * plans[0].trainable_numel


def test_shapes_say_the_same_as_the_module():
    model = Net()
    named = {name: tuple(p.shape) for name, p in model.named_parameters()}
    module, shapes = (estimate(source, config_of(2, {}), 4) for source in (model, named))
    assert [row for row in module.held if row.kind != "buffers"] == list(shapes.held)
    assert module.sent == shapes.sent


def test_the_model_stays_as_it_was():
    model = Net(tied=True)
    before = {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    estimate(model, config_of(3, {"config": BF16}), 2)
    assert {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()} == before


def test_an_optimizer_of_the_caller_is_tried():
    momentum = estimate(
        Net(), config_of(0, {}), 2, optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    )
    plain = estimate(Net(), config_of(0, {}), 2, optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0))
    assert plain.bytes_of("optimizer states") == 0
    assert momentum.bytes_of("optimizer states") == 4 * sum(p.numel() for p in Net().parameters() if p.dim())


def test_factored_states_follow_the_dimensions_they_keep():
    plan = estimate({"w": (40, 30)}, config_of(0, {"optimizer": "Adafactor"}), 2)
    assert plan.bytes_of("optimizer states") == 4 * (40 + 30)
    with pytest.raises(ConfigError, match="zero_allow_untested_optimizer"):
        estimate({"w": (40, 30)}, config_of(1, {"optimizer": "Adafactor"}), 2)


def test_activations_add_to_the_peak_only():
    without, given = planned(3, {}, 2), planned(3, {}, 2, activation_bytes=12_345)
    assert given.peak_bytes == without.peak_bytes + 12_345
    assert given.held == without.held


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, "no shapes"),
        ({"a": (2,), "a.b": (2,)}, "inside"),
        ({"a.b": (2,), "a": (2,)}, "a module"),
        ({"a..b": (2,)}, "dotted"),
    ],
)
def test_shapes_that_are_no_model_are_refused(shapes, words):
    with pytest.raises(ModelError, match=words):
        estimate(shapes, config_of(0, {}), 1)


@pytest.mark.parametrize("setting", [{"world": 0}, {"rank": -1}, {"rank": 2}, {"activation_bytes": -1}])
def test_numbers_out_of_range_are_refused_by_name(setting):
    arguments = {"world": 2, **setting}
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} must be"):
        estimate(Net(), config_of(1, {}), **arguments)


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=8),
    world=st.sampled_from([1, 2, 3, 8, 64]),
    stage=st.integers(0, 3),
    threshold=st.integers(0, 200),
)
def test_shards_of_all_ranks_hold_every_trained_element_once(shapes, world, stage, threshold):
    named = {f"m{i}.weight": tuple(shape) for i, shape in enumerate(shapes)}
    cell = {"config": BF16, "zero": {"param_persistence_threshold": threshold, "reduce_bucket_size": 500}}
    total = sum(math.prod(shape) for shape in named.values())
    plans = [estimate(named, config_of(stage, cell), world, rank=rank) for rank in range(world)]
    rows = [row for plan in plans for row in plan.held if row.kind == "master weights"]
    copies = world if stage == 0 else 1
    assert sum(row.bytes - row.padding_bytes for row in rows) == 4 * total * copies
    gradients = [row.bytes - row.padding_bytes for plan in plans for row in plan.held if row.kind == "gradients"]
    assert sum(gradients) == 2 * total * (1 if stage >= 2 else world)


# --- the command ----------------------------------------------------------------------------------------------------
