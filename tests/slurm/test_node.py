"""What is asked of a GPU node before its packages are chosen."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from slurm.node import ask_node
from slurm.profile import Profile, Resources
from tests.slurm.places import Fake

pytestmark = pytest.mark.multiprocess


def srun(fake: Fake, body: str) -> None:
    path = fake.folder / "bin/srun"
    path.write_text(f'#!/bin/bash\necho "$@" > {fake.folder}/asked\n{body}\n')


def test_a_node_with_the_gpus_of_the_profile_is_asked(fake: Fake) -> None:
    # srun runs what it is given, with this machine's answers for the node's, after a banner.
    commands = "hostname() { echo gpu7; }; uname() { echo x86_64; }; getconf() { echo glibc 2.35; }"
    smi = "nvidia-smi() { echo WARNING: infoROM is corrupted; echo 570.86.15; }"
    body = f"echo Welcome to X; {commands}; {smi}; export -f hostname uname getconf nvidia-smi"
    srun(fake, f'{body}; exec bash -c "${{@: -1}}"')
    gpu = Resources(60, gpus_per_node="h100:4", nodes=2, partition="gpu", account="mine")
    more: dict[str, Any] = {"constraint": "new", "sbatch": {"reservation": "x", "nice": 3}}
    node = ask_node(Profile({"default": Resources(5), "midtrain": gpu}, **more))
    assert node == {
        "host": "gpu7",
        "machine": "x86_64",
        "glibc": "glibc 2.35",
        "driver": "WARNING: infoROM is corrupted\n570.86.15",
    }
    asked = Path(fake.folder / "asked").read_text()
    for option in ("--gpus-per-node=h100:1", "--partition=gpu", "--account=mine"):
        assert f"{option} " in asked
    assert "--reservation=x" in asked and "nice" not in asked
    assert "--constraint=new" in asked and "--nodes=1 " in asked


def test_a_node_without_a_driver_and_a_refused_job_are_told_apart(fake: Fake) -> None:
    profile = Profile({"default": Resources(5, gpus_per_node=1)})
    srun(fake, "echo kit glibc: glibc 2.35; echo 'kit driver: NVIDIA-SMI has failed'")
    assert ask_node(profile)["driver"] == "NVIDIA-SMI has failed"
    srun(fake, "echo 'srun: error: invalid partition specified: gpu' >&2; exit 1")
    with pytest.raises(UserError, match="invalid partition specified"):
        ask_node(profile)
    with pytest.raises(UserError, match="no stage has gpus_per_node"):
        ask_node(Profile({"default": Resources(5)}))
