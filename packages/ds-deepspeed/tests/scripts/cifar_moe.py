"""A classifier of pictures with a mixture of experts, as the tutorial on MoE sets one up.

deepspeed cifar_moe.py --deepspeed --deepspeed_config cifar_moe.json --moe --ep-world-size 2 --num-experts 4 \
    --top-k 1 --moe-param-group
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from pictures import loader, pictures
from torch import nn

import deepspeed
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer


def add_argument():
    parser = argparse.ArgumentParser(description="CIFAR with experts")
    parser.add_argument("-e", "--epochs", default=2, type=int)
    parser.add_argument("--local_rank", type=int, default=-1)
    parser.add_argument("--moe", default=False, action="store_true")
    parser.add_argument("--ep-world-size", default=1, type=int)
    parser.add_argument("--num-experts", type=int, nargs="+", default=[1])
    parser.add_argument("--mlp-type", type=str, default="standard")
    parser.add_argument("--top-k", default=1, type=int)
    parser.add_argument("--min-capacity", default=16, type=int)
    parser.add_argument("--noisy-gate-policy", default=None, type=str)
    parser.add_argument("--moe-param-group", default=False, action="store_true")
    parser.add_argument("--own-loader", action="store_true", help="the order of torch's DistributedSampler")
    parser.add_argument("--losses", help="a file for the losses")
    parser = deepspeed.add_config_arguments(parser)
    return parser.parse_args()


class Net(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16, 60)
        self.fc2 = nn.Linear(60, 42)
        if args.moe:
            self.moe_layer_list = nn.ModuleList(
                MoE(
                    hidden_size=42,
                    expert=nn.Linear(42, 42),
                    num_experts=count,
                    ep_size=args.ep_world_size,
                    use_residual=args.mlp_type == "residual",
                    k=args.top_k,
                    min_capacity=args.min_capacity,
                    noisy_gate_policy=args.noisy_gate_policy,
                )
                for count in args.num_experts
            )
        self.moe = args.moe
        self.fc4 = nn.Linear(42, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        if self.moe:
            for layer in self.moe_layer_list:
                x, _, _ = layer(x)
        return self.fc4(x)


def create_moe_param_groups(model):
    parameters = {"params": list(model.parameters()), "name": "parameters"}
    return split_params_into_different_moe_groups_for_optimizer(parameters)


def main():
    args = add_argument()
    deepspeed.init_distributed()
    torch.manual_seed(0)
    net = Net(args)
    parameters = filter(lambda p: p.requires_grad, net.parameters())
    if args.moe_param_group:
        parameters = create_moe_param_groups(net)
    model_engine, _, trainloader, _ = deepspeed.initialize(
        args=args, model=net, model_parameters=parameters, training_data=pictures(256)
    )
    if args.own_loader:
        trainloader = loader(pictures(256), model_engine.train_micro_batch_size_per_gpu())
    criterion = nn.CrossEntropyLoss()
    losses = []
    for _epoch in range(args.epochs):
        for data in trainloader:
            inputs, labels = data[0].to(model_engine.device), data[1].to(model_engine.device)
            loss = criterion(model_engine(inputs), labels)
            model_engine.backward(loss)
            model_engine.step()
            mean = loss.detach().clone()
            deepspeed.comm.all_reduce(mean)
            losses.append(mean.item() / deepspeed.comm.get_world_size())
    if args.losses and deepspeed.comm.get_rank() == 0:
        Path(args.losses).write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
