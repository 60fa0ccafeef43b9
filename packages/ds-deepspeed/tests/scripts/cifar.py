"""A small classifier of pictures, as the tutorial on CIFAR-10 sets one up: flags, `initialize`, the three calls.

deepspeed cifar.py --deepspeed --deepspeed_config cifar.json
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


def add_argument():
    parser = argparse.ArgumentParser(description="CIFAR")
    parser.add_argument("-e", "--epochs", default=2, type=int, help="number of passes over the data")
    parser.add_argument("--local_rank", type=int, default=-1, help="given by the launcher")
    parser.add_argument("--own-loader", action="store_true", help="the order of torch's DistributedSampler")
    parser.add_argument("--losses", help="a file for the losses")
    parser = deepspeed.add_config_arguments(parser)
    return parser.parse_args()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16, 60)
        self.fc2 = nn.Linear(60, 42)
        self.fc3 = nn.Linear(42, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def main():
    args = add_argument()
    torch.manual_seed(0)
    net = Net()
    parameters = filter(lambda p: p.requires_grad, net.parameters())
    model_engine, _, trainloader, _ = deepspeed.initialize(
        args=args, model=net, model_parameters=parameters, training_data=pictures(256)
    )
    if model_engine.bfloat16_enabled():
        target_dtype = torch.bfloat16
    elif model_engine.fp16_enabled():
        target_dtype = torch.half
    else:
        target_dtype = torch.float32
    if args.own_loader:
        trainloader = loader(pictures(256), model_engine.train_micro_batch_size_per_gpu())
    criterion = nn.CrossEntropyLoss()
    losses = []
    for _epoch in range(args.epochs):
        for data in trainloader:
            inputs, labels = data[0].to(model_engine.device), data[1].to(model_engine.device)
            outputs = model_engine(inputs.to(target_dtype))
            loss = criterion(outputs.float(), labels)
            model_engine.backward(loss)
            model_engine.step()
            mean = loss.detach().clone()
            deepspeed.comm.all_reduce(mean)
            losses.append(mean.item() / deepspeed.comm.get_world_size())
    if args.losses and deepspeed.comm.get_rank() == 0:
        Path(args.losses).write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
