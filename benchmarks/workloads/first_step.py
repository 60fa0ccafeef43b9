"""From nothing to one optimizer step on one rank: first_step.py ours | deepspeed. Answers when the step is done."""

from __future__ import annotations

import sys

from protocol import Channel

channel = Channel()
engine_name = sys.argv[1]

import torch  # noqa: E402  (part of what is measured)

CONFIG = {
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    "steps_per_print": 10**9,
}
if engine_name == "deepspeed":
    import deepspeed as framework

    framework.init_distributed("gloo")
    # The documented way to its CPU Adam.
    CONFIG["zero_optimization"] = {"stage": 1, "offload_optimizer": {"device": "cpu"}}
else:
    import ds_core as framework

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
before = model[0].weight.detach().clone()
engine, optimizer, *_ = framework.initialize(model=model, model_parameters=model.parameters(), config=CONFIG)
loss = engine(torch.ones(4, 64)).square().mean()
engine.backward(loss)
engine.step()
moved = float((model[0].weight.detach() - before).abs().max())
inner = getattr(optimizer, "optimizer", optimizer)
channel.say(loss=float(loss), moved=moved, optimizer=f"{type(inner).__module__}.{type(inner).__name__}")
