"""How the ranks of a job find each other: the address of the first node, and the interface."""

import os
import socket
from pathlib import Path

import pytest

from core.cell.failures import diagnose
from core.errors import UserError
from slurm.job import export_ranks
from slurm.rendezvous import check_interfaces, first_address
from tests.slurm.places import Fake

pytestmark = pytest.mark.slurm
INTERFACES = [(1, "lo"), (2, "ib0"), (3, "eth0")]


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of two in a job of four ranks; it resolves addresses, and no names but gpu1."""

    def getaddrinfo(host: str, port: None) -> list[str]:
        if host != "gpu1" and not host[0].isdigit():
            raise socket.gaierror(-2, "Name or service not known")
        return [host]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "if_nameindex", lambda: INTERFACES)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "left by a shell")
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "SLURM_LAUNCH_NODE_IPADDR"):
        monkeypatch.setenv(name, "")
    facts = {"NTASKS": "4", "JOB_NUM_NODES": "2", "PROCID": "3", "LOCALID": "1", "JOB_ID": "123456"}
    for name, value in {**facts, "JOB_NODELIST": "gpu[1-2]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_ranks_of_a_job_of_several_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as one:
        one.setenv("SLURM_NTASKS", "1")
        export_ranks("ib0")
        assert "RANK" not in os.environ and "WORLD_SIZE" not in os.environ
    monkeypatch.setenv("PATH", "/nowhere")  # as in a container, where there is no scontrol
    export_ranks("ib0")
    assert [os.environ[n] for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == [
        "3",
        "4",
        "1",
        "2",
    ]
    assert os.environ["MASTER_ADDR"] == "gpu1" and os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
    assert 15000 <= int(os.environ["MASTER_PORT"]) < 30000


def test_a_first_node_whose_name_does_not_resolve_is_reached_by_slurms_address(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = Path(fake.folder / "bin/scontrol")
    scontrol.write_text('#!/bin/sh\necho "NodeName=$4 NodeAddr=10.1.2.3 NodeHostName=$4"\n')
    assert first_address("gpu7") == "10.1.2.3"
    scontrol.unlink()
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.1.2.4")
    monkeypatch.setenv("PATH", "/nowhere")
    assert first_address("gpu7") == "10.1.2.4"
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "")
    with pytest.raises(UserError) as raised:
        first_address("gpu7")
    failure = diagnose(str(raised.value))
    assert failure and failure.name == "unknown node name" and "gpu7" in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "value", "fits"),
    [
        ("GLOO_SOCKET_IFNAME", "ib0", True),
        ("GLOO_SOCKET_IFNAME", "ib0,eth0", True),
        ("GLOO_SOCKET_IFNAME", "ib", False),
        ("GLOO_SOCKET_IFNAME", "hsn0", False),
        ("NCCL_SOCKET_IFNAME", "eth,hsn", True),
        ("NCCL_SOCKET_IFNAME", "=eth0", True),
        ("NCCL_SOCKET_IFNAME", "^docker,lo", True),
        ("NCCL_SOCKET_IFNAME", "hsn", False),
        ("NCCL_SOCKET_IFNAME", "=eth", False),
    ],
)
def test_an_interface_that_is_not_here_is_named_at_once(
    variable: str, value: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    if fits:
        return check_interfaces()
    with pytest.raises(UserError) as raised:
        export_ranks(None)
    assert f"{variable}={value}: no such network interface" in str(raised.value)
    failure = diagnose(str(raised.value))
    assert failure and failure.name == "no such interface"
