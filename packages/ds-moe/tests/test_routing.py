"""Which experts tokens go to, against choices made one by one in plain PyTorch with the same random draws."""

from __future__ import annotations

import pytest
import torch
from plain_moe import Chosen, choose

from ds_moe.capacity import capacity_of, counts_of
from ds_moe.errors import MoeConfigError, RoutingError
from ds_moe.losses import gate_entropy, load_balance_loss, z_loss
from ds_moe.noise import gumbel_rsample, multiplicative_jitter
from ds_moe.routing import RouterPolicy, Routing, route

TOKENS, EXPERTS = 30, 5


def drawn(tokens: int = TOKENS, experts: int = EXPERTS) -> torch.Tensor:
    """Logits that send more tokens to the first experts than they take."""
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(3))
    return (logits - 0.4 * torch.arange(experts)).requires_grad_()


def assert_same(found: Routing, want: Chosen) -> None:
    pairs = {(t, e): w for t, e, w in want.pairs}
    rows = [(t, int(e), w) for t, row in enumerate(found.experts) for e, w in zip(row, found.weights[t], strict=True)]
    assert {(t, e) for t, e, _ in rows if e >= 0} == set(pairs)
    for t, e, weight in rows:
        torch.testing.assert_close(weight, pairs.get((t, e), torch.tensor(0.0)), rtol=1e-6, atol=0)
    assert found.counts.tolist() == want.counts
    torch.testing.assert_close(found.l_aux, want.l_aux, rtol=1e-6, atol=0)


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize(("k", "drop_policy"), [(1, None), (2, None), (3, None), (3, "probs"), (3, "position")])
def test_choices_are_those_made_one_by_one(k: int, drop_policy: str | None, drop: bool) -> None:
    logits = drawn()
    policy = RouterPolicy(
        k=k, min_capacity=2, drop_tokens=drop, random_selection=False, sample_second=False, drop_policy=drop_policy
    )
    found = route(logits, policy, training=True)
    want = choose(logits, k, minimum=2, drop=drop, by_probability=k == 3 and drop_policy != "position")
    assert_same(found, want)
    assert (want.dropped > 0) == drop == (found.capacity is not None)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gradients_are_those_of_plain_choices(k: int) -> None:
    logits = drawn()
    policy = RouterPolicy(k=k, random_selection=False, sample_second=False)
    found = route(logits, policy, training=True)
    factors = torch.rand(TOKENS, EXPERTS)
    ((found.weights * factors.gather(1, found.experts.clamp(min=0))).sum() + found.l_aux).backward()
    got, logits.grad = logits.grad, None
    want = choose(logits, k, by_probability=k == 3)
    (sum(w * factors[t, e] for t, e, w in want.pairs) + want.l_aux).backward()
    torch.testing.assert_close(got, logits.grad, rtol=1e-5, atol=1e-7)


def test_a_random_choice_is_kept_of_tokens_above_the_capacity() -> None:
    logits = drawn()
    torch.manual_seed(5)
    found = route(logits, RouterPolicy(min_capacity=2), training=True)
    torch.manual_seed(5)
    want = choose(logits, 1, minimum=2, priority=torch.rand(TOKENS))
    assert_same(found, want)
    assert found.experts.tolist() != route(logits, RouterPolicy(min_capacity=2), training=True).experts.tolist()


def test_evaluation_is_not_random_and_has_a_capacity_of_its_own() -> None:
    logits = drawn()
    policy = RouterPolicy(noise="RSample", min_capacity=2, eval_capacity_factor=0.5)
    assert_same(route(logits, policy, training=False), choose(logits, 1, factor=0.5, minimum=2))


def test_rsample_takes_experts_by_noisy_logits_and_weights_by_clean_ones() -> None:
    logits = drawn()
    torch.manual_seed(5)
    found = route(logits, RouterPolicy(noise="RSample", random_selection=False), training=True)
    torch.manual_seed(5)
    noisy = logits.detach() + gumbel_rsample(logits.shape)
    ranked = [[int(row.argmax())] for row in noisy]
    assert ranked != [[int(row.argmax())] for row in logits]
    assert_same(found, choose(logits, 1, ranked=ranked))


def test_the_second_expert_is_sampled_among_the_others() -> None:
    logits = drawn()
    torch.manual_seed(5)
    found = route(logits, RouterPolicy(k=2), training=True)
    torch.manual_seed(5)
    noisy = logits.detach() + gumbel_rsample(logits.shape)
    first = logits.argmax(-1)
    second = noisy.scatter(1, first.unsqueeze(1), float("-inf")).argmax(-1)
    assert_same(found, choose(logits, 2, ranked=torch.stack((first, second), 1).tolist()))


def test_gumbel_noise_makes_the_largest_logit_a_draw_from_their_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0])
    picks = (logits + gumbel_rsample((20_000, 3))).argmax(-1)
    torch.testing.assert_close(picks.bincount() / 20_000, logits.softmax(-1), rtol=0, atol=0.015)


def test_jitter_multiplies_by_draws_near_one() -> None:
    y = multiplicative_jitter(torch.full((1000,), 2.0), epsilon=0.1)
    assert y.min() >= 1.8 and y.max() <= 2.2 and y.std() > 0.05
    assert multiplicative_jitter(y, epsilon=0) is y


@pytest.mark.parametrize("k", [1, 2])
def test_tokens_that_are_not_used_go_nowhere_and_take_no_place(k: int) -> None:
    logits = drawn()
    used = (torch.arange(TOKENS) % 3 > 0).int()
    policy = RouterPolicy(k=k, min_capacity=2, random_selection=False, sample_second=False)
    found = route(logits, policy, training=True, used=used)
    assert_same(found, choose(logits, k, minimum=2, used=used.nonzero().flatten().tolist()))
    assert (found.experts[used == 0] == -1).all()


def test_a_bias_changes_the_choice_and_not_the_weights() -> None:
    logits = drawn()
    policy = RouterPolicy(k=2, balancing="bias", score="sigmoid", drop_tokens=False)
    bias = torch.tensor([-1.0, 0, 0, 0, 1.0])
    found = route(logits, policy, training=True, bias=bias)
    scores = logits.sigmoid()
    assert found.experts.tolist() == (scores + bias).topk(2).indices.tolist()
    chosen = scores.gather(1, found.experts)
    torch.testing.assert_close(found.weights, chosen / chosen.sum(-1, keepdim=True))
    assert found.l_aux.item() == 0.0 and found.balance.item() > 0


def test_a_token_chooses_from_its_best_groups_only() -> None:
    logits = drawn(experts=6)
    policy = RouterPolicy(k=2, groups=3, groups_kept=1, drop_tokens=False)
    found = route(logits, policy, training=True)
    best = logits.view(TOKENS, 3, 2).amax(-1).argmax(-1)
    assert found.experts.sort(-1).values.tolist() == torch.stack((2 * best, 2 * best + 1), 1).tolist()


def test_weights_of_one_expert_are_probabilities_and_can_be_scaled_or_normalised() -> None:
    logits = drawn()
    plain = route(logits, RouterPolicy(drop_tokens=False), training=True).weights
    torch.testing.assert_close(plain, logits.softmax(-1).amax(-1, keepdim=True))
    scaled = route(logits, RouterPolicy(drop_tokens=False, scale=2.5), training=True).weights
    torch.testing.assert_close(scaled, 2.5 * plain)
    ones = route(logits, RouterPolicy(drop_tokens=False, normalise=True), training=True).weights
    torch.testing.assert_close(ones, torch.ones(TOKENS, 1))


def test_losses_are_as_in_their_papers() -> None:
    logits = drawn()
    even = torch.full((8, 4), 0.25)
    assert float(load_balance_loss(even, torch.full((4,), 0.25))) == 1.0
    assert float(load_balance_loss(torch.eye(4)[[0] * 8], torch.tensor([1.0, 0, 0, 0]))) == 4.0
    torch.testing.assert_close(z_loss(logits), logits.exp().sum(-1).log().square().mean())
    assert float(gate_entropy(even)) == pytest.approx(torch.log(torch.tensor(4.0)).item())
    policy = RouterPolicy(z_loss_coef=0.1, balancing="none")
    torch.testing.assert_close(route(logits, policy, training=True).l_aux, 0.1 * z_loss(logits))


def test_no_tokens_give_losses_of_zero() -> None:
    found = route(torch.empty(0, EXPERTS, requires_grad=True), RouterPolicy(k=2, z_loss_coef=1.0), training=True)
    assert found.experts.shape == (0, 2) and found.l_aux.item() == 0.0
    found.l_aux.backward()


def test_capacity_is_a_share_rounded_up_and_a_minimum() -> None:
    assert [capacity_of(10, 4, factor, 2) for factor in (0.1, 1.0, 1.25)] == [2, 3, 4]
    assert capacity_of(90, 4, 0.8, 2) == 18
    assert counts_of(torch.tensor([[0, 2], [-1, 2]]), 4).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": "Jiter"}, "noisy_gate_policy must be one of None, 'Jitter', 'RSample', got 'Jiter'.*'Jitter'"),
        ({"balancing": "auxiliary"}, "balancing must be one of 'aux', 'bias', 'none'"),
        ({"drop_policy": "first"}, "drop_policy must be one of"),
        ({"score": "relu"}, "score must be one of"),
        ({"capacity_factor": -1.0}, "capacity_factor must be 0 or more, got -1"),
        ({"k": 0}, "k must be 1 or more, got 0"),
        ({"balancing": "bias", "noise": "RSample"}, "take noisy_gate_policy out"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(MoeConfigError, match=message):
        RouterPolicy(**settings)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RoutingError, match="flatten batch and sequence"):
        route(torch.randn(2, 3, 4), RouterPolicy(), training=True)
    with pytest.raises(RoutingError, match="k=5 experts a token need as many experts, got 4"):
        route(torch.randn(3, 4), RouterPolicy(k=5), training=True)
    with pytest.raises(RoutingError, match="one value for each of the 3 tokens"):
        route(torch.randn(3, 4), RouterPolicy(), training=True, used=torch.ones(4))
