"""An AlexNet in stages, as the tutorial on pipeline parallelism sets one up: `PipelineModule` and `train_batch`.

deepspeed alexnet_pipeline.py --deepspeed --deepspeed_config alexnet_pipeline.json --pipeline-parallel-size 2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from pictures import loader, pictures
from torch import nn

import deepspeed
from deepspeed.pipe import PipelineModule
from deepspeed.utils import RepeatingLoader


def get_args():
    parser = argparse.ArgumentParser(description="CIFAR in stages")
    parser.add_argument("--local_rank", type=int, default=-1, help="given by the launcher")
    parser.add_argument("-s", "--steps", type=int, default=8, help="stop after this many steps")
    parser.add_argument("-p", "--pipeline-parallel-size", type=int, default=2)
    parser.add_argument("--backend", type=str, default="gloo")
    parser.add_argument("--seed", type=int, default=1138)
    parser.add_argument("--own-loader", action="store_true", help="the order of torch's DistributedSampler")
    parser.add_argument("--losses", help="a file for the losses")
    parser = deepspeed.add_config_arguments(parser)
    return parser.parse_args()


class AlexNet(nn.Module):
    """Narrow, and without dropout, so that two runs can be compared."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2, stride=2),
            nn.Conv2d(16, 24, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(24, 16, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(16 * 2 * 2, 48),
            nn.ReLU(inplace=True),
            nn.Linear(48, num_classes),
        )


def join_layers(vision_model):
    return [
        *vision_model.features,
        vision_model.avgpool,
        lambda x: torch.flatten(x, 1),
        *vision_model.classifier,
    ]


def train_pipe(args):
    torch.manual_seed(args.seed)
    net = PipelineModule(
        layers=join_layers(AlexNet()),
        loss_fn=torch.nn.CrossEntropyLoss(),
        num_stages=args.pipeline_parallel_size,
        partition_method="parameters",
        activation_checkpoint_interval=0,
    )
    engine, _, _, _ = deepspeed.initialize(
        args=args,
        model=net,
        model_parameters=[p for p in net.parameters() if p.requires_grad],
        training_data=pictures(256),
    )
    batches = None
    if args.own_loader:
        grid = net.mpu()
        parallel = grid.get_data_parallel_world_size(), grid.get_data_parallel_rank()
        batches = iter(RepeatingLoader(loader(pictures(256), engine.train_micro_batch_size_per_gpu(), *parallel)))
    losses = [float(engine.train_batch(batches)) for _step in range(args.steps)]
    if args.losses and deepspeed.comm.get_rank() == 0:
        Path(args.losses).write_text(json.dumps(losses))


if __name__ == "__main__":
    args = get_args()
    deepspeed.init_distributed(dist_backend=args.backend)
    train_pipe(args)
