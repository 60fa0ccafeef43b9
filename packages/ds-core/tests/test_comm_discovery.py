"""Which rank this is, from every launcher's variables; what is missing is listed."""

from __future__ import annotations

from typing import Any

import pytest

from ds_core.comm.discovery import discover, expand_hosts
from ds_core.errors import CommError


def test_nothing_set_is_one_rank() -> None:
    placement = discover({})
    assert (placement.rank, placement.world_size, placement.local_rank) == (0, 1, 0)
    assert placement.is_one_machine


CASES: dict[str, tuple[dict[str, str], tuple[Any, ...]]] = {
    "torchrun": (
        {
            "RANK": "5",
            "WORLD_SIZE": "8",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "4",
            "MASTER_ADDR": "10.0.0.1",
            "MASTER_PORT": "1234",
        },
        (5, 8, 1, "10.0.0.1", 1234, False),
    ),
    "torchrun inside SLURM": (
        {
            "RANK": "1",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "1",
            "SLURM_PROCID": "0",
            "SLURM_NTASKS": "1",
        },
        (1, 2, 1, "127.0.0.1", 1, True),
    ),
    "Open MPI on one host": (
        {
            "OMPI_COMM_WORLD_RANK": "1",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        },
        (1, 2, 1, "127.0.0.1", 29500, True),
    ),
    "Open MPI on Azure": (
        {
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            "AZ_BATCH_MASTER_NODE": "10.1.1.1:6000",
        },
        (3, 4, 1, "10.1.1.1", 29500, False),
    ),
    "Open MPI inside SLURM": (
        {
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_LOCAL_RANK": "3",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
            "SLURM_PROCID": "0",
            "SLURM_NTASKS": "1",
        },
        (3, 4, 3, "127.0.0.1", 29500, True),
    ),
    "MPICH": (
        {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1", "MASTER_ADDR": "head"},
        (0, 2, 0, "head", 29500, False),
    ),
    "MVAPICH": (
        {
            "MV2_COMM_WORLD_RANK": "1",
            "MV2_COMM_WORLD_SIZE": "2",
            "MV2_COMM_WORLD_LOCAL_RANK": "1",
            "MV2_COMM_WORLD_LOCAL_SIZE": "2",
            "MASTER_PORT": "7",
        },
        (1, 2, 1, "127.0.0.1", 7, True),
    ),
    "SLURM": (
        {"SLURM_PROCID": "6", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2", "SLURM_NODELIST": "gpu[007-008,12],x"},
        (6, 8, 2, "gpu007", 29500, False),
    ),
    "SLURM allocation without srun": (
        {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NODELIST": "a"},
        (0, 1, 0, "127.0.0.1", 0, True),
    ),
    "SLURM step": (
        {
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": "1",
            "SLURM_NTASKS": "8",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_LOCALID": "1",
            "SLURM_STEP_NODELIST": "b1",
            "SLURM_NODELIST": "a[1-2]",
        },
        (1, 2, 1, "b1", 29500, False),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_launchers(name: str) -> None:
    environ, expected = CASES[name]
    p = discover(environ)
    assert (p.rank, p.world_size, p.local_rank, p.master_addr, p.master_port, p.is_one_machine) == expected


def test_mpi_discovery_can_be_switched_off() -> None:
    assert discover({"PMI_RANK": "1", "PMI_SIZE": "2", "MASTER_ADDR": "a"}, mpi=False).world_size == 1


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, r"RANK=0, WORLD_SIZE missing, LOCAL_RANK missing"),
        ({"WORLD_SIZE": "2"}, r"RANK missing, WORLD_SIZE=2"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"},
            r"RANK=0, WORLD_SIZE=2, LOCAL_RANK missing, MASTER_ADDR=a, MASTER_PORT missing; start with `ds run`",
        ),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=2 is outside WORLD_SIZE=2"),
        ({"RANK": "x", "WORLD_SIZE": "1"}, "RANK='x' is not a whole number"),
        ({"SLURM_PROCID": "0"}, "SLURM_STEP_NUM_TASKS and SLURM_NTASKS missing"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "none of MASTER_ADDR, AZ_BATCHAI_MPI_MASTER_NODE"),
    ],
)
def test_half_set_variables_are_listed(environ: dict[str, str], message: str) -> None:
    with pytest.raises(CommError, match=message):
        discover(environ)


def test_arguments_go_first_and_come_in_pairs() -> None:
    placement = discover({"RANK": "0", "WORLD_SIZE": "1"}, rank=1, world_size=2)
    assert (placement.rank, placement.world_size, placement.source) == (1, 2, "arguments")
    with pytest.raises(CommError, match="pass both"):
        discover({}, rank=1)
    with pytest.raises(CommError, match="pass both"):
        discover({}, rank=2, world_size=2)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10,2],m", ["n08", "n09", "n10", "n2", "m"]),
        ("r[1-2]c[3,5]x", ["r1c3x", "r1c5x", "r2c3x", "r2c5x"]),
    ],
)
def test_slurm_node_lists(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


def test_a_broken_node_list_is_named() -> None:
    with pytest.raises(CommError, match=r"'n\[x-2\]'"):
        expand_hosts("n[x-2]")
