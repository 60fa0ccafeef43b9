"""Full values, states off the device, and what is refused, in one process without sharding."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import ds_core
from ds_core import utils
from ds_core.errors import EngineError, ModelError
from ds_core.utils import OffloadStateTypeEnum, get_state_devices

CPU = torch.device("cpu")
KINDS = [kind.value for kind in OffloadStateTypeEnum]


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 3), nn.Linear(3, 2))
    model[3].requires_grad_(False)
    return model


def make(given=None, model=None, **config):
    model = model or net()
    section = {} if given is not None else {"optimizer": {"type": "AdamW", "params": {"lr": 0.0625}}}
    config = {**section, **config}
    engine = ds_core.initialize(
        model=model, optimizer=given, config={"train_micro_batch_size_per_gpu": 4, "gradient_clipping": 0.0, **config}
    )[0]
    return engine, model


def backward(engine, seed=1):
    dtype = next(engine.module.parameters()).dtype
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    engine.backward(engine(x).float().square().mean())


def test_gradients_are_none_before_backward_and_after_the_step():
    engine, model = make()
    assert utils.safe_get_full_grad(model[0].weight) is None
    assert utils.safe_get_local_grad(model[0].weight) is None
    backward(engine)
    expected = model[0].weight.grad.clone()
    assert torch.equal(utils.safe_get_full_grad(model[0].weight), expected)
    assert torch.equal(utils.safe_get_local_grad(model[0].weight), expected.view(-1))
    engine.step()
    assert utils.safe_get_full_grad(model[0].weight) is None


def test_gradients_are_without_the_loss_scale():
    plain, low = make(bf16={"enabled": True}), make(fp16={"enabled": True, "loss_scale": 1024.0})
    for engine, _ in (plain, low):
        backward(engine)
    scaled = low[1][0].weight.grad.float()
    read = utils.safe_get_full_grad(low[1][0].weight)
    assert torch.equal(read * 1024, scaled)
    torch.testing.assert_close(read, utils.safe_get_full_grad(plain[1][0].weight), rtol=0.1, atol=1e-3)


def test_what_is_read_is_a_copy():
    engine, model = make()
    backward(engine)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        utils.safe_get_full_fp32_param(parameter).fill_(7)
        utils.safe_get_local_fp32_param(parameter).fill_(7)
        if parameter.requires_grad:
            utils.safe_get_full_grad(parameter).fill_(7)
            utils.safe_get_full_optimizer_state(parameter, "exp_avg").fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not (utils.safe_get_full_grad(model[0].weight) == 7).any()
    assert not utils.safe_get_full_optimizer_state(model[0].weight, "exp_avg").any()


def test_a_frozen_parameter_has_a_value_and_nothing_else():
    engine, model = make(bf16={"enabled": True})
    frozen = model[3].weight
    assert torch.equal(utils.safe_get_full_fp32_param(frozen), frozen.float())
    utils.safe_set_full_fp32_param(frozen, torch.ones(2, 3))
    assert (frozen == 1).all()
    backward(engine)
    assert utils.safe_get_full_grad(frozen) is None
    assert utils.safe_get_full_optimizer_state(frozen, "exp_avg") is None
    with pytest.raises(ModelError, match="no optimizer updates"):
        utils.safe_set_full_grad(frozen, torch.ones(2, 3))


def test_what_a_master_keeps_finer_than_the_weight_is_read_and_set():
    _engine, model = make(bf16={"enabled": True})
    value = torch.linspace(-1, 1, 200).view(40, 5) / 3
    utils.safe_set_full_fp32_param(model[0].weight, value)
    assert torch.equal(utils.safe_get_full_fp32_param(model[0].weight), value)
    assert torch.equal(model[0].weight, value.bfloat16())
    assert not torch.equal(model[0].weight.float(), value)


def test_values_of_a_double_model_are_not_narrowed():
    _, model = make(model=net().double())
    value = utils.safe_get_full_fp32_param(model[0].weight)
    assert value.dtype == torch.float64
    assert torch.equal(value, model[0].weight)


@pytest.mark.parametrize(
    "kind", ["Adam", "Adagrad", "RMSprop", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD", "Rprop"]
)
def test_states_read_before_the_first_step_are_those_it_starts_from(kind):
    def train(reads):
        torch.manual_seed(0)
        params = {"lr": 0.01, **({"torch_adam": True} if kind == "Adam" else {})}
        engine, model = make(optimizer={"type": kind, "params": params})
        seen = 0
        if reads:
            key = {"Adagrad": "sum", "RMSprop": "square_avg", "Adadelta": "acc_delta", "ASGD": "ax", "Rprop": "prev"}
            for parameter in (p for p in model.parameters() if p.requires_grad):
                state = utils.safe_get_full_optimizer_state(parameter, key.get(kind, "exp_avg"))
                seen += state is not None and not state.any()
        for seed in range(2):
            backward(engine, seed)
            engine.step()
        return [p.detach().clone() for p in model.parameters()], seen

    (without, _), (found, seen) = train(False), train(True)
    assert seen == 4
    assert all(torch.equal(a, b) for a, b in zip(without, found, strict=True))


def test_states_that_come_of_the_first_gradient_are_none_until_then():
    model = net()
    engine, _ = make(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9), model)
    weight = model[0].weight
    assert utils.safe_get_full_optimizer_state(weight, "momentum_buffer") is None
    with pytest.raises(EngineError, match="in its first step"):
        utils.safe_set_full_optimizer_state(weight, torch.zeros(40, 5), "momentum_buffer")
    backward(engine)
    gradient = utils.safe_get_full_grad(weight)
    engine.step()
    assert torch.equal(utils.safe_get_full_optimizer_state(weight, "momentum_buffer"), gradient)


def test_a_state_with_a_shape_of_its_own_is_read_and_set_where_nothing_is_sharded():
    engine, model = make(optimizer={"type": "Adafactor", "params": {"lr": 0.01}})
    backward(engine)
    engine.step()
    weight = model[0].weight
    rows = utils.safe_get_full_optimizer_state(weight, "row_var")
    assert rows.numel() == 40
    utils.safe_set_full_optimizer_state(weight, rows * 2, "row_var")
    assert torch.equal(utils.safe_get_full_optimizer_state(weight, "row_var"), rows * 2)


def test_mistakes_are_named():
    engine, model = make()
    weight = model[0].weight
    with pytest.raises(ModelError, match=r"belongs to no engine; pass a parameter"):
        utils.safe_get_full_fp32_param(nn.Parameter(torch.zeros(2)))
    with pytest.raises(ModelError, match=r"\(str\) belongs to no engine"):
        utils.safe_get_full_grad("weight")
    with pytest.raises(ModelError, match=r"of shape \(40, 5\), got \(5, 40\)"):
        utils.safe_set_full_fp32_param(weight, torch.zeros(5, 40))
    with pytest.raises(ModelError, match=r"of shape \(200,\), got list"):
        utils.safe_set_local_fp32_param(weight, [0.0])
    with pytest.raises(ModelError, match=r"keeps no state 'exp_avrg' for '0.weight'; there are: exp_avg, exp_avg_sq"):
        utils.safe_get_full_optimizer_state(weight, "exp_avrg")
    with pytest.raises(EngineError, match="no backward since the last step"):
        utils.safe_set_full_grad(weight, torch.zeros(40, 5))
    backward(engine)
    engine.destroy()
    with pytest.raises(ModelError, match="belongs to no engine"):
        utils.safe_get_full_fp32_param(weight)


def test_a_gradient_that_the_scaled_half_precision_cannot_hold_is_refused():
    engine, model = make(fp16={"enabled": True, "loss_scale": 65536.0})
    backward(engine)
    with pytest.raises(ModelError, match=r"do not fit torch.float16 with the loss scale 65536"):
        utils.safe_set_full_grad(model[0].weight, torch.full((40, 5), 2.0))


def test_an_updating_function_may_change_in_place_or_return_and_may_ask_for_the_parameter():
    engine, model = make()
    backward(engine)
    before = {p: utils.safe_get_full_grad(p) for p in model.parameters()}
    seen = []

    def by_parameter(gradient, parameter):
        seen.append(parameter)
        return gradient * parameter.dim()

    utils.safe_update_full_grad_vectorized(list(model.parameters()), by_parameter)
    utils.safe_update_full_grad_vectorized([model[0].bias], lambda gradient, factor=3: gradient * factor)
    utils.safe_update_full_grad_vectorized([model[2].bias], torch.Tensor.neg_)
    assert [id(p) for p in seen] == [id(p) for p in model.parameters() if p.requires_grad]
    assert torch.equal(utils.safe_get_full_grad(model[0].weight), before[model[0].weight] * 2)
    assert torch.equal(utils.safe_get_full_grad(model[0].bias), before[model[0].bias] * 3)
    assert torch.equal(utils.safe_get_full_grad(model[2].bias), -before[model[2].bias])


def test_the_registry_keeps_no_engine_alive():
    engine, model = make()
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    with pytest.raises(ModelError, match="belongs to no engine"):
        utils.safe_get_full_fp32_param(model[0].weight)


# --- states off the device ----------------------------------------------------------------------------------------


def storages(engine, model):
    """Weak references to the memory of everything that training keeps."""
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    optimizer = engine.optimizer.optimizer
    tensors += [p for group in optimizer.param_groups for p in group["params"]]
    tensors += [v for state in optimizer.state.values() for v in state.values() if v.dim()]
    return [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]


@pytest.mark.parametrize("config", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
def test_memory_is_given_up_and_tensors_stay_the_objects_they_were(config):
    engine, model = make(**config)
    backward(engine)
    engine.step()
    backward(engine)
    objects = [id(p) for p in model.parameters()]
    before = [p.detach().clone() for p in model.parameters()]
    moment = utils.safe_get_full_optimizer_state(model[0].weight, "exp_avg")
    gradient = utils.safe_get_full_grad(model[0].weight)
    held = storages(engine, model)
    engine.offload_states()
    gc.collect()
    assert all(storage.expired() for storage in held)
    assert [id(p) for p in model.parameters()] == objects
    assert all(p.shape == b.shape and p.isnan().all() for p, b in zip(model.parameters(), before, strict=True))
    engine.reload_states()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert torch.equal(utils.safe_get_full_optimizer_state(model[0].weight, "exp_avg"), moment)
    assert torch.equal(utils.safe_get_full_grad(model[0].weight), gradient)
    engine.step()


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_moves_by_itself(kind):
    engine, model = make(bf16={"enabled": True})
    backward(engine)
    engine.step()
    backward(engine)
    if kind == "lp_grads":
        engine.allreduce_gradients()
    engine.offload_states(include=[OffloadStateTypeEnum(kind)])
    with pytest.raises(EngineError, match=f"engine.step was called while {kind} is offloaded to cpu; .*reload_states"):
        engine.step()
    assert model[0].weight.isnan().all() == (kind == "lp_params")
    assert model[0].weight.grad.isnan().all() == (kind in ("lp_grads", "contiguous_grad_buffer"))
    steps = engine.micro_steps
    engine.reload_states()
    engine.step()
    assert engine.micro_steps == steps + 1


def test_what_needs_a_state_is_refused_and_what_does_not_is_not(tmp_path):
    engine, model = make(bf16={"enabled": True})
    x = torch.randn(4, 5).bfloat16()
    engine.offload_states(include=["optim_states", "hp_params"])
    expected = engine(x)
    with pytest.raises(EngineError, match="safe_get_full_fp32_param was called while"):
        utils.safe_get_full_fp32_param(model[0].weight)
    with pytest.raises(Exception, match=r"save_checkpoint was called while hp_params is offloaded"):
        engine.save_checkpoint(tmp_path)
    engine.offload_states(include="lp_params")
    with pytest.raises(EngineError, match="forward was called while hp_params, lp_params are offloaded to cpu"):
        engine(x)
    with pytest.raises(EngineError, match="backward was called while"):
        engine.backward(expected.float().sum())
    with pytest.raises(EngineError, match="gathering parameters was called while"):
        engine.module_state_dict()
    engine.reload_states()
    assert torch.equal(engine(x), expected)


def test_gradients_that_are_forgotten_while_away_do_not_come_back():
    engine, model = make()
    backward(engine)
    engine.offload_states(include=["contiguous_grad_buffer", "lp_params"])
    engine.zero_grad()
    engine.reload_states()
    assert model[0].weight.grad is None
    assert utils.safe_get_full_grad(model[0].weight) is None
    backward(engine)
    engine.step()


def test_states_come_back_when_the_engine_is_destroyed():
    engine, model = make()
    before = [p.detach().clone() for p in model.parameters()]
    engine.offload_states()
    engine.destroy()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_where_states_are_and_what_cannot_be_asked():
    engine, _ = make(bf16={"enabled": True})
    assert get_state_devices(engine, "optim_states") == set()
    assert get_state_devices(engine, OffloadStateTypeEnum.lp_params) == {CPU}
    assert get_state_devices(engine, "lp_grads") == set()
    with pytest.raises(EngineError, match=r"'hp_parms'; allowed are optim_states, .* Did you mean 'hp_params'"):
        engine.offload_states(include=["hp_parms"])
    for device in ("nvme", "none", "meta", None):
        with pytest.raises(EngineError, match="device must be 'cpu'"):
            engine.offload_states(device=device)


def test_names_users_import_are_there_and_load_late():
    code = "import sys, ds_core.utils as u; assert 'torch' not in sys.modules; [getattr(u, n) for n in u.__all__]"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "first", ["ds_core.utils:safe_get_full_fp32_param", "ds_core.parts:Weights", "ds_core.checkpoint:load"]
)
def test_what_is_imported_first_does_not_matter(first):
    module, name = first.split(":")
    subprocess.run([sys.executable, "-c", f"from {module} import {name}"], check=True)
