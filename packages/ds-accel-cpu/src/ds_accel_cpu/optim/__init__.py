"""Optimizers on the CPU at memory speed, each made of one op."""

from ds_accel_cpu.optim.adagrad import CPUAdagrad, make_adagrad
from ds_accel_cpu.optim.adam import CPUAdam, CPUAdam8bit, make_adam, make_adamw
from ds_accel_cpu.optim.lamb import CPULamb, make_lamb
from ds_accel_cpu.optim.lion import CPULion, make_lion
from ds_accel_cpu.optim.sgd import CPUSGD, make_sgd

__all__ = [
    "CPUSGD",
    "CPUAdagrad",
    "CPUAdam",
    "CPUAdam8bit",
    "CPULamb",
    "CPULion",
    "make_adagrad",
    "make_adam",
    "make_adamw",
    "make_lamb",
    "make_lion",
    "make_sgd",
]
