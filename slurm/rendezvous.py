"""Where the ranks of a job meet: checked at its start, not after minutes of waiting."""

import os
import re
import socket

from core.errors import UserError
from slurm import slurm_cli


def first_address(name: str) -> str:
    """An address of the job's first node that this node can resolve.

    Some sites' nodes do not resolve each other's names. Then it is the address by which Slurm
    itself reaches the node, or the one that srun came from, which runs there.

    Raises UserError where there is none.
    """
    for address in (name, _slurm_address(name), os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")):
        if address:
            try:
                socket.getaddrinfo(address, None)
                return address
            except OSError:
                pass
    raise UserError(
        where=name,
        what=f"{socket.gethostname()} cannot resolve the name of the job's first node",
        fix=f"tell the site (`getent hosts {name}` on a node), or nodes: 1 in the cluster profile",
    )


def _slurm_address(name: str) -> str:
    """The NodeAddr of a node; empty where there is no scontrol, as in a container."""
    try:
        output = slurm_cli.call("scontrol", "--oneliner", "show", "node", name).stdout
    except UserError:
        return ""
    match = re.search(r"\bNodeAddr=(\S+)", output)
    return match[1] if match else ""


def check_interfaces() -> None:
    """Raise UserError where NCCL or gloo are told of a network interface that is not here.

    They would wait for each other, or fail with an error that does not name it.
    """
    here = [name for _, name in socket.if_nameindex()]
    nccl = os.environ.get("NCCL_SOCKET_IFNAME", "")  # beginnings, or "=": names, "^": not these
    gloo = os.environ.get("GLOO_SOCKET_IFNAME", "")  # names
    if nccl.startswith("="):
        nccl_is_here = any(name in here for name in nccl[1:].split(","))
    else:
        nccl_is_here = any(name.startswith(tuple(nccl.split(","))) for name in here)
    wrong = []
    if nccl and not nccl.startswith("^") and not nccl_is_here:
        wrong.append(f"NCCL_SOCKET_IFNAME={nccl}")
    if gloo and not all(name in here for name in gloo.split(",")):
        wrong.append(f"GLOO_SOCKET_IFNAME={gloo}")
    if wrong:
        names = " ".join(word.partition("=")[0] for word in wrong)
        raise UserError(
            where=", ".join(wrong),
            what=f"no such network interface on {socket.gethostname()}, which has "
            f"{', '.join(here)}",
            fix=f"interface: one of them in the cluster profile, or `unset {names}` in your shell",
        )
