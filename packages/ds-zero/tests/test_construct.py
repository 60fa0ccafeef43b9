"""Recorded models are bit-equal to plainly constructed ones, and leave every random stream where those leave it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ds_core.errors import ModelError
from ds_zero.construct import Recording

SEED = 7


def plain(build):
    torch.manual_seed(SEED)
    return build(), torch.get_rng_state()


def recorded(build):
    """The model and, by parameter, the value the replay gave; the parameters themselves get copies of them."""
    torch.manual_seed(SEED)
    before = torch.get_rng_state()
    with Recording() as recording:
        model = build()
    assert torch.equal(torch.get_rng_state(), before), "construction drew random numbers"
    values = {}
    for parameter, value in recording.replay():
        assert parameter not in values
        values[parameter] = value.clone()
        parameter.data = values[parameter]
    return model, values


def assert_same(build):
    expected, state = plain(build)
    model, values = recorded(build)
    assert torch.equal(torch.get_rng_state(), state), "the replay left the random stream elsewhere"
    assert set(values) == set(model.parameters())
    for kind in ("named_parameters", "named_buffers"):
        wanted, found = dict(getattr(expected, kind)()), dict(getattr(model, kind)())
        assert list(wanted) == list(found)
        for name, tensor in wanted.items():
            assert type(found[name]) is type(tensor), name
            assert found[name].dtype is tensor.dtype, name
            assert found[name].requires_grad is tensor.requires_grad, name
            assert torch.equal(found[name], tensor), name
    return expected, model


class Lines(nn.Module):
    """A module whose constructor is one function."""

    def __init__(self, lines):
        super().__init__()
        lines(self)


def products(self):
    self.scaled = nn.Parameter(torch.randn(3, 4) * 0.02)
    self.view = nn.Parameter(torch.randn(4, 6).t())
    self.row = nn.Parameter(torch.randn(4, 6)[1])
    self.expanded = nn.Parameter(torch.rand(1, 5).expand(3, 5).clone())
    self.cat = nn.Parameter(torch.cat([torch.zeros(2), torch.randn(3)]))
    self.real = nn.Parameter(torch.tensor([0.25, 0.5]))


def inits(self):
    for name in ("orthogonal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "eye_"):
        self.register_parameter(name, nn.Parameter(torch.empty(20, 12)))
        getattr(nn.init, name)(getattr(self, name))
    self.conv = nn.Conv2d(4, 4, 3)
    nn.init.dirac_(self.conv.weight)
    nn.init.constant_(self.conv.bias, 0.5)


def truncated(self):
    """torch draws until everything is inside: how often depends on the values."""
    self.narrow = nn.Parameter(torch.empty(30, 20))
    nn.init.trunc_normal_(self.narrow, std=1.0, a=-0.7, b=0.9)
    self.one_sided = nn.Parameter(torch.empty(30, 20))
    nn.init.trunc_normal_(self.one_sided, std=1.0, a=0.5, b=3.0)
    self.after = nn.Linear(3, 3)


def written_twice(self):
    self.first = nn.Linear(8, 8)
    self.second = nn.Linear(8, 8)
    for module in (self.first, self.second):
        module.weight.data.normal_(0, 0.02)
        nn.init.zeros_(module.bias)
    with torch.no_grad():
        self.first.weight[2].fill_(3.0)
        self.second.weight[:, 1:3] *= self.first.weight[:, 1:3]
        self.second.bias.copy_(self.first.weight.sum(1))


def tied(self):
    self.embed = nn.Embedding(6, 4)
    self.head = nn.Linear(4, 6, bias=False)
    self.head.weight = self.embed.weight
    self.blocks = nn.ModuleList(copy.deepcopy(nn.Linear(4, 4)) for _ in range(2))
    self.listed = nn.ParameterList([torch.randn(2), torch.zeros(3)])


def buffers(self):
    self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, 8, 2, dtype=torch.int64).float() / 8)))
    self.register_buffer("position_ids", torch.arange(5).expand((1, -1)), persistent=False)
    self.register_buffer("mask", torch.tril(torch.ones(4, 4, dtype=torch.bool)))
    self.register_buffer("features", torch.randn(3, 3))
    self.register_buffer("halved", self.features[1:])
    self.halved.mul_(0.5)
    self.bucket = copy.deepcopy(self.features)
    self.features.add_(1.0)


def cast(self):
    self.linear = nn.Linear(5, 7)
    self.norm = nn.LayerNorm(7)
    self.double = nn.Linear(3, 3, dtype=torch.float64)
    self.to(torch.bfloat16)
    self.late = nn.Linear(7, 2)


def scaled_at_the_end(self):
    self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
    with torch.no_grad():
        for parameter in self.parameters():
            parameter.mul_(0.3).add_(torch.linspace(0, 1, 6))


def reseeded(self):
    self.first = nn.Linear(3, 3)
    torch.manual_seed(3)
    self.second = nn.Linear(3, 3)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        self.third = nn.Linear(3, 3)
        state = torch.get_rng_state()
        self.fourth = nn.Linear(3, 3)
    torch.set_rng_state(state)
    self.fifth = nn.Linear(3, 3)
    torch.manual_seed(11)


def own_generator(self):
    generator = torch.Generator().manual_seed(1)
    self.first = nn.Parameter(torch.randn(5, generator=generator))
    self.second = nn.Parameter(torch.empty(5))
    nn.init.trunc_normal_(self.second, std=2.0, generator=generator)
    generator.manual_seed(1)
    self.again = nn.Parameter(torch.rand(5, generator=generator))
    self.other = nn.Linear(2, 2)


def real_inputs(self):
    table = torch.tensor([1.0, 2.0, 3.0])
    self.copied = nn.Parameter(torch.empty(3))
    self.copied.data.copy_(table)
    table.mul_(10)  # after it was read
    self.later = nn.Parameter(torch.empty(3))
    self.later.data.copy_(table)
    self.drawn = nn.Parameter(torch.tensor([0.0] * 20))
    nn.init.normal_(self.drawn)
    self.sum = nn.Parameter(self.drawn.data + 1)
    self.noise = nn.Parameter(torch.bernoulli(torch.full((8,), 0.5)))


def default_dtype(self):
    torch.set_default_dtype(torch.float64)
    try:
        self.wide = nn.Linear(4, 4)
        self.register_buffer("steps", torch.arange(4) / 2)
    finally:
        torch.set_default_dtype(torch.float32)
    self.narrow = nn.Linear(4, 4)


ZOO = {
    "linear": lambda: nn.Linear(5, 7),
    "embedding with padding": lambda: nn.Embedding(6, 4, padding_idx=2),
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "attention": lambda: nn.MultiheadAttention(8, 2, kdim=6, add_bias_kv=True),
    "copied layers": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3, enable_nested_tensor=False
    ),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 7)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 7)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(5, 7)),
    "double": lambda: nn.Linear(5, 7).double(),
    "frozen": lambda: nn.Linear(5, 7).requires_grad_(False),
    **{
        lines.__name__: lambda lines=lines: Lines(lines)
        for lines in (
            products,
            inits,
            truncated,
            written_twice,
            tied,
            buffers,
            cast,
            scaled_at_the_end,
            reseeded,
            own_generator,
            real_inputs,
            default_dtype,
        )
    },
}


@pytest.mark.parametrize("name", ZOO)
def test_a_recorded_model_is_bit_equal_to_a_plain_one(name):
    assert_same(ZOO[name])


def test_tied_parameters_stay_one():
    _, model = assert_same(lambda: Lines(tied))
    assert model.head.weight is model.embed.weight


def test_buffers_that_share_memory_still_do():
    _, model = assert_same(lambda: Lines(buffers))
    model.features[1, 0] = 42.0
    assert model.halved[0, 0] == 42.0
    assert torch.equal(model.bucket, plain(lambda: Lines(buffers))[0].bucket)


def test_tensors_that_are_neither_parameter_nor_buffer_are_filled():
    def lines(self):
        self.linear = nn.Linear(2, 2)
        self.table = torch.polar(torch.ones(3), torch.arange(3.0))
        self.pair = [torch.randn(2), torch.zeros(2)]

    expected, model = assert_same(lambda: Lines(lines))
    assert torch.equal(model.table, expected.table)
    assert all(map(torch.equal, model.pair, expected.pair))


def test_a_parameter_nobody_replaces_gets_its_value():
    expected, _ = plain(lambda: nn.Linear(3, 3))
    torch.manual_seed(SEED)
    with Recording() as recording:
        model = nn.Linear(3, 3)
    for _ in recording.replay():
        pass
    assert torch.equal(model.weight, expected.weight)


def test_an_alias_of_a_sharded_parameter_gets_its_value():
    expected, _ = plain(lambda: nn.Linear(3, 3))
    torch.manual_seed(SEED)
    with Recording() as recording:
        model = nn.Linear(3, 3)
        alias = model.weight.detach()[1]
    for parameter, _ in recording.replay():
        parameter.data = torch.empty(0)
    assert torch.equal(alias, expected.weight[1])


def test_a_recorded_tensor_says_where_it_is_and_has_no_memory():
    with Recording():
        weight = nn.Linear(300, 300).weight
        assert weight.device == torch.device("cpu")
        assert weight.untyped_storage().nbytes() == 0


def test_values_that_the_constructor_asks_for_are_the_plain_ones():
    def lines(self):
        self.linear = nn.Linear(9, 9)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.3, 4)]
        self.more = torch.linspace(0, 1, 3).tolist()
        self.array = torch.randn(3).numpy().copy()
        self.depth = 1 + int((torch.rand(40) > 0.5).sum())
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(self.depth))
        kept = torch.randn(10)
        self.kept = nn.Parameter(kept[kept > 0].clone())  # of a size that depends on the values
        self.norm = float(self.linear.weight.detach().norm())
        self.shown = repr(self.linear.bias)

    expected, model = assert_same(lambda: Lines(lines))
    assert (model.rates, model.more, model.depth, model.norm) == (
        expected.rates,
        expected.more,
        expected.depth,
        expected.norm,
    )
    assert (model.array == expected.array).all()
    assert model.shown == expected.shown


def test_writing_through_numpy_into_a_recorded_tensor_is_refused():
    with Recording():
        array = torch.zeros(3).numpy()
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


@torch.library.custom_op("ds_zero_tests::double_in_place", mutates_args=("x",))
def double_in_place(x: torch.Tensor) -> torch.Tensor:
    x.mul_(2)
    return x.sum()


@torch.library.custom_op("ds_zero_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_an_operator_that_cannot_be_recorded_says_what_to_do():
    with Recording(), pytest.raises(ModelError, match=r"double_in_place.*shard the existing module"):
        double_in_place(torch.zeros(4))


def test_an_operator_without_a_shape_rule_gives_its_real_result():
    def lines(self):
        self.before = nn.Linear(3, 3)
        self.made = nn.Parameter(doubled(torch.randn(4)))
        self.after = nn.Linear(3, 3)

    assert_same(lambda: Lines(lines))


def test_a_mistake_in_a_constructor_raises_what_torch_raises():
    with pytest.raises(RuntimeError) as expected:
        torch.zeros(3).copy_(torch.zeros(4))
    with Recording(), pytest.raises(RuntimeError) as found:
        torch.zeros(3).copy_(torch.zeros(4))
    assert str(found.value) == str(expected.value)


def test_meta_tensors_the_constructor_asks_for_stay_meta():
    def lines(self):
        self.asked = nn.Linear(3, 3, device="meta")
        self.made = torch.nn.utils.skip_init(nn.Linear, 3, 3)
        nn.init.ones_(self.made.weight)
        nn.init.zeros_(self.made.bias)
        self.linear = nn.Linear(3, 3)

    expected, state = plain(lambda: Lines(lines))
    model, values = recorded(lambda: Lines(lines))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.asked.weight.is_meta
    assert set(values) == {*model.made.parameters(), *model.linear.parameters()}
    assert torch.equal(model.linear.weight, expected.linear.weight)
    assert torch.equal(model.made.weight, expected.made.weight)


def test_a_recording_is_used_once():
    with Recording() as recording:
        nn.Linear(2, 2)
    list(recording.replay())
    with pytest.raises(ModelError, match="replayed"):
        recording.replay()
    with pytest.raises(ModelError, match="make a new Recording"), recording:
        pass


def test_an_error_in_a_constructor_leaves_nothing_behind():
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), Recording() as recording:
        linear = nn.Linear(2, 2)
        torch.manual_seed(1)
        raise ZeroDivisionError
    assert len(repr(linear.weight)) > 0  # tracebacks show it
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ModelError, match="ended without error"):
        recording.replay()
    assert nn.Linear(2, 2).weight.untyped_storage().nbytes() == 16


def test_recordings_do_not_nest():
    with Recording() as outer:
        assert Recording.active() is outer
        with pytest.raises(ModelError, match="do not nest"), Recording():
            pass
        linear = nn.Linear(2, 2)
    assert Recording.active() is None
    assert {parameter for parameter, _ in outer.replay()} == set(linear.parameters())
