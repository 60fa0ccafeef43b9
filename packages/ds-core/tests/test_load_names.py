"""Names in a checkpoint and in a module: renamed, missing, left over; and what is said of those that do not fit."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import ds_core
from ds_core.checkpoint.loading.policy import make_policy
from ds_core.errors import CheckpointError


class Net(nn.Module):
    """Two layers under names that can be chosen, a tied weight, a frozen layer and buffers."""

    def __init__(self, body: str = "body", head: str = "head") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 5)
        setattr(self, body, nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 5)))
        setattr(self, head, nn.Linear(5, 7, bias=False))
        getattr(self, head).weight = self.embed.weight
        self.frozen = nn.Linear(7, 1).requires_grad_(False)
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self._names = (body, head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        body, head = (getattr(self, name) for name in self._names)
        return self.frozen(head(body(self.embed(x)))).square().mean()


def build(model: nn.Module | None = None, **changes):
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        **changes,
    }
    return ds_core.initialize(model=model or Net(), config=config)[0]


def trained(steps: int = 2, **changes):
    engine = build(**changes)
    for _ in range(steps):
        engine.backward(engine(torch.arange(4)))
        engine.step()
    with torch.no_grad():
        engine.module.count.add_(2)
    return engine


def weights(engine) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}


def moments(engine) -> list[torch.Tensor]:
    """Of all states, in the order of the model, which names do not change."""
    return [
        value.clone()
        for group in engine.optimizer.param_groups
        for parameter in group["params"]
        for _, value in sorted(engine.optimizer.state[parameter].items())
        if isinstance(value, torch.Tensor)
    ]


def equal(left, right) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    "rename",
    [
        {"layers.*": "body.*", "head.weight": "lm.weight", "*": "*"},
        lambda name: name.replace("layers.", "body."),
    ],
)
def test_renamed_modules_take_weights_and_optimizer_states(tmp_path, rename):
    source = trained()
    source.save_checkpoint(tmp_path)
    target = build(Net(body="layers"))
    target.load_checkpoint(tmp_path, rename=rename)
    assert equal(list(weights(target).values()), list(weights(source).values()))
    assert equal(moments(target), moments(source))


def test_a_tied_weight_is_found_under_either_of_its_names(tmp_path):
    source = trained()
    source.save_checkpoint(tmp_path)
    target = build()
    target.load_checkpoint(tmp_path, rename={"embed.weight": "nowhere", "head.weight": "embed.weight"})
    assert torch.equal(target.module.embed.weight, source.module.embed.weight)
    assert equal(moments(target), moments(source))


def test_two_names_for_one_tensor_are_refused(tmp_path):
    trained().save_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"'body.0.weight' of the checkpoint to both '.*' and '.*' of the model"):
        build().load_checkpoint(tmp_path, rename={"body.1.weight": "body.0.weight"})


def test_an_entry_that_renames_nothing_is_refused_with_the_nearest_name(tmp_path):
    trained().save_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"'body.0.weigth'.*Did you mean 'body.0.weight'"):
        build().load_checkpoint(tmp_path, rename={"body.0.weigth": "x"})


def test_names_that_are_missing_come_with_the_nearest_the_checkpoint_has(tmp_path):
    trained().save_checkpoint(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        build(Net(body="bodies")).load_checkpoint(tmp_path)
    assert "'bodies.0.weight' (the checkpoint has 'body.0.weight')" in str(caught.value)
    assert "rename=" in str(caught.value)


def test_names_the_model_has_not_are_refused_unless_allowed(tmp_path):
    class More(Net):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(2, 2)

    build(More()).save_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"2 parameters and buffers that this model has not: 'extra.weight'"):
        build().load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"'extra\.bias'"):
        build().load_checkpoint(tmp_path, unexpected=["*.weight"])
    for allowed in ({"unexpected": ["extra.*"]}, {"unexpected": "ignore"}, {"load_module_strict": False}):
        assert build().load_checkpoint(tmp_path, **allowed)[0] is not None


def test_a_buffer_that_is_no_state_any_more_is_passed_over(tmp_path):
    model = Net()
    model._non_persistent_buffers_set.clear()
    build(model).save_checkpoint(tmp_path)
    assert build().load_checkpoint(tmp_path)[0] is not None


@pytest.mark.parametrize("allowed", [["new.*"], "keep"])
def test_missing_names_keep_what_they_have_and_are_logged(tmp_path, caplog, allowed):
    class More(Net):
        def __init__(self) -> None:
            super().__init__()
            self.new = nn.Linear(1, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.new(super().forward(x).view(1, 1)).sum()

    source = trained()
    source.save_checkpoint(tmp_path)
    engine = build(More())
    engine.backward(engine(torch.arange(4)))
    engine.step()  # so that the new layer has states to keep
    state = engine.optimizer.optimizer.state_dict()["state"]
    before = weights(engine)
    own = {key: value.clone() for entry in state.values() for key, value in entry.items()}
    with pytest.raises(CheckpointError, match=r"lacks 2 of the model's 10 .*'new.weight'"):
        engine.load_checkpoint(tmp_path)
    with caplog.at_level(logging.INFO, logger="ds_core"):
        engine.load_checkpoint(tmp_path, missing=allowed)
    assert "new.weight, new.bias" in caplog.text
    after = weights(engine)
    assert all(torch.equal(after[name], before[name]) for name in ("new.weight", "new.bias"))
    assert all(torch.equal(after[name], value) for name, value in weights(source).items())
    last = next(reversed(engine.optimizer.optimizer.state_dict()["state"].values()))
    assert torch.equal(last["exp_avg"][-3:], own["exp_avg"][-3:])
    engine.backward(engine(torch.arange(4)))
    engine.step()
    assert all(torch.isfinite(value).all() for value in weights(engine).values())


def test_a_layer_that_is_trained_now_and_was_frozen_has_to_be_named(tmp_path):
    trained().save_checkpoint(tmp_path)
    model = Net()
    model.frozen.requires_grad_(True)
    with pytest.raises(CheckpointError, match=r"no optimizer state of 'frozen.weight'.*not trained when it was saved"):
        build(model).load_checkpoint(tmp_path)
    engine = build(model)
    engine.load_checkpoint(tmp_path, missing=["frozen.*"])
    engine.backward(engine(torch.arange(4)))
    engine.step()
    assert engine.global_steps == 3


def test_a_layer_that_is_frozen_now_and_was_trained_has_to_be_named(tmp_path):
    trained().save_checkpoint(tmp_path)
    model = Net()
    model.body.requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"state of 'body.0.* this engine does not train"):
        build(model).load_checkpoint(tmp_path)
    assert build(model).load_checkpoint(tmp_path, unexpected=["body.*"])[0] is not None


def test_words_that_are_no_policy_are_refused():
    with pytest.raises(CheckpointError, match=r"missing must be 'error', 'keep', 'frozen' or a list.*got 'ignore'"):
        make_policy(missing="ignore")
    with pytest.raises(CheckpointError, match=r"same number of \*"):
        make_policy(rename={"a.*": "b"})


def test_patterns_take_what_stars_stood_for_and_exact_names_win():
    policy = make_policy(rename={"a.*.w*": "x.*.y*", "*.b": "*.c", "a.1.w": "one"})
    assert policy.renamed(["a.1.w", "a.2.wide", "q.b", "z"]) == {
        "a.1.w": "one",
        "a.2.wide": "x.2.yide",
        "q.b": "q.c",
        "z": "z",
    }


def test_a_function_may_load_the_weights(tmp_path):
    source = trained(bf16={"enabled": True})
    source.save_checkpoint(tmp_path)

    def load(src, dst):
        src["body.0.weight"] = src["body.0.weight"] * 2
        dst.load_state_dict(src, strict=False)

    engine = build(bf16={"enabled": True})
    engine.load_checkpoint(tmp_path, custom_load_fn=load)
    assert torch.equal(engine.module.body[0].weight, source.module.body[0].weight * 2)
    assert torch.equal(engine.module.body[1].weight, source.module.body[1].weight)
    assert equal(moments(engine), moments(source))
    # Masters follow what the function changed, and are as fine as they were where it changed nothing.
    from ds_core.utils import safe_get_full_fp32_param as master

    assert torch.equal(master(engine.module.body[0].weight), engine.module.body[0].weight.float())
    assert torch.equal(master(engine.module.body[1].weight), master(source.module.body[1].weight))
    assert not torch.equal(master(source.module.body[1].weight), source.module.body[1].weight.float())


# --- adapters: the frozen base is not in the checkpoint ---------------------------------------------------------------


class LowRank(nn.Module):
    """A frozen linear layer with a trained low-rank correction, as LoRA has it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.base = nn.Linear(6, 6).requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(2, 6))
        self.lora_b = nn.Parameter(torch.zeros(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.base(x) + x @ (self.lora_b @ self.lora_a).T).square().mean()


def test_adapters_load_over_a_base_that_was_left_out(tmp_path):
    source = build(LowRank(0))
    for _ in range(3):
        source.backward(source(torch.ones(4, 6)))
        source.step()
    source.save_checkpoint(tmp_path, exclude_frozen_parameters=True)
    with pytest.raises(CheckpointError) as caught:
        build(LowRank(1)).load_checkpoint(tmp_path)
    assert 'missing="frozen"' in str(caught.value)
    assert "exclude_frozen_parameters" in str(caught.value)
    engine = build(LowRank(1))
    base = engine.module.base.weight.clone()
    engine.load_checkpoint(tmp_path, missing="frozen")
    assert torch.equal(engine.module.base.weight, base)
    assert torch.equal(engine.module.lora_a, source.module.lora_a)
    assert equal(moments(engine), moments(source))


def test_frozen_may_be_missing_but_nothing_else(tmp_path):
    source = build(LowRank(0))
    source.save_checkpoint(tmp_path, exclude_frozen_parameters=True)
    model = LowRank(1)
    model.lora_c = nn.Parameter(torch.zeros(3))
    with pytest.raises(CheckpointError, match=r"lacks 1 of the model's 5 .*'lora_c'"):
        build(model).load_checkpoint(tmp_path, missing="frozen")
