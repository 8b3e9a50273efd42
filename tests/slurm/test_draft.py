"""A profile drafted from the cluster: it submits as it is, and marks what a person has to choose."""

from pathlib import Path

import pytest

from core.errors import UserError
from slurm.draft import draft
from slurm.profile import load_profile
from tests.place import ROOT
from tests.slurm.places import Fake, Kit, Lab

pytestmark = pytest.mark.slurm

TINY = ROOT / "studies/tiny.yaml"
PARTITIONS = """\
PartitionName=debug MaxTime=00:30:00 State=UP AllowAccounts=ALL
PartitionName=cpu Default=YES MaxTime=2-00:00:00 State=UP AllowAccounts=ALL
PartitionName=a100 MaxTime=1-00:00:00 State=UP AllowAccounts=lab1,lab2
PartitionName=h100 MaxTime=04:00:00 State=UP AllowAccounts=lab2
PartitionName=secret MaxTime=UNLIMITED State=UP AllowAccounts=others
PartitionName=old MaxTime=UNLIMITED State=DOWN AllowAccounts=ALL
"""
NODES = {
    "debug": "n1|8|16000|(null)|cpu|idle|none",
    "cpu": "n2|64|256000|(null)|cpu|idle|none",
    "a100": "g1|128|1024000|gpu:a100:8(S:0-1)|gpu,nvlink|idle|none\n"
    "g2|128|1024000|gpu:a100:8(S:0-1)|gpu,nvlink|idle|none",
    "h100": "h1|96|768000|gpu:h100:4|gpu|idle|none",
    "secret": "s1|96|768000|gpu:b200:64|gpu|idle|none",
    "old": "o1|96|768000|gpu:v100:64|gpu|idle|none",
}
ACCOUNTS = "lab1|lab1|normal,long|normal\nlab2|lab1|normal,long|normal"


def two_kinds(fake: Fake) -> None:
    """A cluster with two kinds of GPUs, two accounts and a QOS."""
    fake.say("partitions", PARTITIONS)
    cases = "\n".join(f"*'-p {name} '*) echo '{lines}';;" for name, lines in NODES.items())
    (fake.folder / "bin/sinfo").write_text(f'#!/bin/bash\ncase "$*" in\n{cases}\nesac\n')
    (fake.folder / "bin/sacctmgr").write_text(
        "#!/bin/bash\n"
        f"case $* in *format=Account,DefaultAccount,QOS,*) echo '{ACCOUNTS}';; "
        f"*'show user'*) printf 'lab1|%s|||||||\\n' 'lab1|lab1' 'lab1|lab2' | sed 's/^lab1//';; "
        "esac\n"
    )


def test_what_must_be_chosen_is_marked(fake: Fake, tmp_path: Path) -> None:
    two_kinds(fake)
    path = tmp_path / "clusters/mine.yaml"
    choices = draft(path)
    text = path.read_text()
    assert [line.partition("<- ")[2] for line in text.splitlines()[2:] if "<- " in line] == choices
    (account,) = [line for line in choices if line.startswith("who pays")]
    assert "lab1, lab2; this is your default" in account
    assert any(line.startswith("normal, long: normal without") for line in choices)
    assert any(line.startswith("GPUs: choose partition and type") for line in choices)
    assert "partition a100: 2 nodes of 8 a100, time limit 1440 min" in text
    assert "partition h100: 1 nodes of 4 h100, time limit 240 min" in text
    assert "b200" not in text and "v100" not in text, "of others, and down"
    profile = load_profile(path)
    assert (profile.partition, profile.account, profile.qos) == ("cpu", "lab1", None)
    midtrain = profile.resources("midtrain")
    assert (midtrain.partition, midtrain.gpus_per_node) == ("a100", "a100:4")
    assert (midtrain.tasks_per_node, midtrain.cpus, midtrain.mem_gb) == (4, 16, 450.0)
    assert profile.resources("lm_eval").gpus_per_node == "a100:1"
    # Choosing the other type is one edit; the sources are beside the values.
    assert "# of 8 GPUs a node, 128 cores (sinfo)" in text and "(scontrol show partition)" in text
    with pytest.raises(UserError, match="a draft replaces no profile"):
        draft(path)


def test_a_cluster_without_types_accounts_and_gpus(fake: Fake, tmp_path: Path) -> None:
    fake.say("config", "MaxArraySize = 1001\nAccountingStorageType = (null)\nTmpFS = /local\n")
    fake.say("partitions", "PartitionName=all MaxTime=UNLIMITED State=UP\n")
    fake.say("nodes", "n1|16|64000|gpu:2|a,b|idle|none\n")
    choices = draft(tmp_path / "one.yaml")
    assert any("every partition has GPUs" in line for line in choices)
    assert any("Slurm says none; nodes have the features a, b" in line for line in choices)
    profile = load_profile(tmp_path / "one.yaml")
    assert profile.resources("sft").gpus_per_node == 2 and profile.account is None
    assert profile.scratch == "/local/$SLURM_JOB_ID"
    fake.say("nodes", "n1|2|3000|(null)|cpu|idle|none\n")
    assert any("no partition lists GPUs" in line for line in draft(tmp_path / "none.yaml"))
    small = load_profile(tmp_path / "none.yaml").resources("model")
    assert (small.cpus, small.mem_gb) == (2, 2.0)
    fake.say("nodes", "")
    with pytest.raises(UserError, match="no partition that is up has nodes for you"):
        draft(tmp_path / "nothing.yaml")


def test_the_draft_of_the_test_cluster_submits_tiny_as_it_is(
    lab: Lab, kit: Kit, tmp_path: Path
) -> None:
    choices = draft(tmp_path / "drafted.yaml")
    profile = load_profile(tmp_path / "drafted.yaml")
    assert profile.partition == "cpu" and profile.resources("sft").gpus_per_node == "h100:4"
    assert any("partition and type" in line for line in choices), "gpu and scavenge"
    try:
        facts = kit.done("submit", "--cluster", str(tmp_path / "drafted.yaml"), study=TINY)
        assert facts["submitted"] == facts["cells"] and not facts["waits"]
    finally:
        kit.done("cancel", study=TINY)
