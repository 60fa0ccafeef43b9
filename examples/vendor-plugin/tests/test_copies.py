from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.openbox.reset_traffic()


def test_bytes_are_counted_in_each_direction() -> None:
    device = torch.arange(100.0).to("openbox")
    assert torch.openbox.traffic() == (400, 0)
    device.cpu()
    device.cpu()
    assert torch.openbox.traffic() == (400, 800)


def test_only_what_is_copied_counts() -> None:
    device = torch.zeros(100, device="openbox")
    torch.openbox.reset_traffic()
    device[10:20].copy_(torch.ones(10))
    host = torch.empty(5)
    host.copy_(device[8:13])
    assert host.tolist() == [0, 0, 1, 1, 1]
    assert torch.openbox.traffic() == (40, 20)


def test_work_on_the_device_copies_nothing() -> None:
    x = torch.ones(64, 64, device="openbox", requires_grad=True)
    torch.openbox.reset_traffic()
    (x @ x).relu().sum().backward()
    torch.optim.SGD([x], lr=0.1).step()
    x.detach().clone().mul_(2)
    assert torch.openbox.traffic() == (0, 0)


def test_reading_a_number_counts() -> None:
    total = torch.ones(64, device="openbox").sum()
    torch.openbox.reset_traffic()
    assert total.item() == 64.0
    assert torch.openbox.traffic() == (0, 4)


def test_devices_count_apart() -> None:
    torch.openbox.reset_traffic(1)
    torch.ones(4).to("openbox:1")
    assert torch.openbox.traffic(0) == (0, 0)
    assert torch.openbox.traffic(1) == (16, 0)
