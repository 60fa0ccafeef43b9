"""Small jobs of Lightning, and the accelerator that lets its DeepSpeed strategy use processes without GPUs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.accelerators import CUDAAccelerator as FabricCUDAAccelerator
from lightning.pytorch.accelerators import CUDAAccelerator
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

ROWS, BATCH, ACCUMULATED, EPOCHS, CLIP = 32, 8, 2, 2, 0.5


class _HostMemory:
    """What an accelerator of Lightning's answers for host memory."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing: there is one."""

    def setup(self, trainer: Any) -> None:
        """Nothing."""

    def teardown(self) -> None:
        """Nothing."""

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        return list(range(int(devices)))

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        return [torch.device("cpu", index) for index in devices]

    @staticmethod
    def auto_device_count() -> int:
        return int(os.environ["WORLD_SIZE"])

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "host"


class Host(_HostMemory, CUDAAccelerator):
    """Host memory under the only kind of accelerator that the strategy of Lightning's Trainer takes."""


class FabricHost(_HostMemory, FabricCUDAAccelerator):
    """The same for Fabric's."""


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 8, generator=generator)
    return TensorDataset(x, x.sin().sum(1, keepdim=True))


class Model(pl.LightningModule):
    """A small network. `late`: made in ``configure_model``, where it may be sharded; `on_host`: for offload."""

    def __init__(self, late: bool = False, on_host: bool = False) -> None:
        super().__init__()
        self.late, self.on_host = late, on_host
        self.net: nn.Module | None = None
        self.losses: list[float] = []
        self.evaluated: list[float] = []
        if not late:
            self.net = self.make()
        self.placed: set[int] = set()

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def configure_model(self) -> None:
        if self.net is None:
            self.net = self.make()

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        assert self.net is not None
        x = x.to(next(self.net.parameters()).dtype)
        return nn.functional.mse_loss(self.net(x).float(), y.float())

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("validation", self.loss(batch), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.evaluated.append(float(self.trainer.callback_metrics["validation"]))

    def configure_optimizers(self) -> Any:
        self.placed = {getattr(parameter, "ds_numel", 0) for parameter in self.parameters()}
        make: Any = torch.optim.AdamW
        if self.on_host:
            from deepspeed.ops.adam import DeepSpeedCPUAdam as make
        optimizer = make(self.parameters(), lr=1e-2, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def quiet() -> None:
    """Lightning tells and warns about everything, deprecations of torch's among it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def trainer(folder: Path, *, epochs: int = EPOCHS, keep: bool = False, **more: Any) -> pl.Trainer:
    """Two micro-batches a step, eight rows over all ranks each; a folder for what it writes."""
    ranks = int(os.environ["WORLD_SIZE"])
    place = {"accelerator": "cpu", "devices": 1} if ranks == 1 and "strategy" not in more else {"accelerator": Host()}
    return pl.Trainer(
        **{"devices": ranks, **place, **more},
        max_epochs=epochs,
        accumulate_grad_batches=ACCUMULATED,
        gradient_clip_val=CLIP,
        default_root_dir=str(folder),
        enable_checkpointing=keep,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        use_distributed_sampler=False,
    )


def batches() -> DataLoader:
    """This rank's part of every batch; Lightning's own sampler would shuffle."""
    ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    return DataLoader(data(), BATCH // ranks, sampler=DistributedSampler(data(), ranks, rank, shuffle=False))


@contextmanager
def environment() -> Iterator[None]:
    """Lightning removes WORLD_SIZE and its kin when a trainer is done; the next of this process needs them."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def fit(folder: Path, model: Model | None = None, *, ckpt_path: str | None = None, **more: Any) -> dict[str, Any]:
    """Losses of this rank, evaluations over all, and the trainer."""
    quiet()
    model = Model() if model is None else model
    with environment():
        made = trainer(folder, **more)
        made.fit(model, batches(), batches(), ckpt_path=ckpt_path)
    return {"losses": model.losses, "evaluated": model.evaluated, "trainer": made, "model": model}
