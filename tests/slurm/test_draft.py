"""A profile drafted from the cluster: it submits as it is, and marks what a person has to choose."""

from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import UserError
from slurm import slurm_cli
from slurm.cluster_limits import ask_nodes
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
ACCOUNTS = "|lab1|lab1|normal,long|normal\n|lab2|lab1|normal,long|normal\nelse|lab3|lab3|x|x"


def two_kinds(fake: Fake) -> None:
    """A cluster with two kinds of GPUs, two accounts and a QOS."""
    fake.say("partitions", PARTITIONS)
    cases = "\n".join(f"*'-p {name} '*) echo '{lines}';;" for name, lines in NODES.items())
    (fake.folder / "bin/sinfo").write_text(f'#!/bin/bash\ncase "$*" in\n{cases}\nesac\n')
    (fake.folder / "bin/sacctmgr").write_text(
        "#!/bin/bash\n"
        f"case $* in *DefaultAccount,QOS,*) echo '{ACCOUNTS}';; "
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


def only_with(fake: Fake, cases: str) -> None:
    """Have sbatch refuse scripts by the shell patterns of `cases`."""
    (fake.folder / "bin/sbatch").write_text(
        f"#!/bin/bash\ncd {fake.folder}\n"
        'script=$(cat)\nno() { echo "sbatch: error: $1" >&2; exit 1; }\n'
        f"case $script in\n{cases}\nesac\n"
    )


def test_partitions_are_named_as_sbatch_takes_them(fake: Fake, tmp_path: Path) -> None:
    """The one for a group alone is left out; another takes jobs of one account and QOS."""
    two_kinds(fake)
    only_with(
        fake,
        "*partition=a100*) no 'group not permitted';;\n"
        "*partition=h100*account=lab2*qos=long*|*account=lab2*partition=h100*qos=long*) ;;\n"
        "*partition=h100*) no 'Invalid qos';;",
    )
    draft(tmp_path / "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text()
    assert "# not partition a100: group not permitted (sbatch --test-only)" in text
    assert "#   partition a100:" not in text
    profile = load_profile(tmp_path / "mine.yaml")
    assert (profile.account, profile.qos, profile.partition) == ("lab1", None, "cpu")
    sft = profile.resources("sft")
    assert (sft.partition, sft.account, sft.qos) == ("h100", "lab2", "long")
    assert sft.minutes == 240, "the partition's limit"


def test_partitions_of_others_are_asked_about_once(fake: Fake, tmp_path: Path) -> None:
    """A site may have dozens of them, and sbatch takes its time."""
    two_kinds(fake)
    theirs = [f"theirs{n}" for n in range(20)]
    more = "".join(f"PartitionName={name} State=UP AllowGroups=x\n" for name in theirs)
    fake.say("partitions", PARTITIONS + more)
    nodes = "\n".join(f"*'-p {name} '*) echo '{NODES['h100']}';;" for name in [*NODES, *theirs])
    (fake.folder / "bin/sinfo").write_text(f'#!/bin/bash\ncase "$*" in\n{nodes}\nesac\n')
    only_with(fake, '*partition=theirs*) echo >> asked; no "User\'s group not permitted";;')
    draft(tmp_path / "mine.yaml")
    assert len((fake.folder / "asked").read_text().splitlines()) == len(theirs)


def test_what_a_site_refuses_is_left_out_or_marked(fake: Fake, tmp_path: Path) -> None:
    fake.say("partitions", "PartitionName=all MaxTime=UNLIMITED State=UP OverSubscribe=EXCLUSIVE\n")
    fake.say("nodes", "n1|16|64000|gpu:h100:4|a|idle|none\n")
    only_with(fake, "*--mem=*) no 'use --mem-per-cpu';;")
    draft(tmp_path / "core.yaml")
    profile = load_profile(tmp_path / "core.yaml")
    sft = profile.resources("sft")
    assert sft.mem_gb is None and sft.sbatch == {"mem-per-cpu": "3584M"}, "56 GiB of 16 cores"
    only_with(fake, "*--mem*) no 'do not use --mem';;")
    choices = draft(tmp_path / "mem.yaml")
    profile = load_profile(tmp_path / "mem.yaml")
    assert profile.resources("sft").mem_gb is profile.resources("judge").mem_gb is None
    assert "without mem_gb, which sbatch refuses here" in (tmp_path / "mem.yaml").read_text()
    assert any("pays for 4" in line for line in choices), "whole nodes"
    only_with(fake, "*gpus-per-node*) no 'ask for an even number';;")
    choices = draft(tmp_path / "gpus.yaml")
    assert choices.count("refused: ask for an even number") == 4
    # Slurm's RealMemory is 1 MB where it is not set.
    fake.say("nodes", "n1|16|1|gpu:h100:4|a|idle|none\n")
    only_with(fake, "never) ;;")
    assert any("does not know that of the nodes" in line for line in draft(tmp_path / "n.yaml"))
    assert load_profile(tmp_path / "n.yaml").resources("sft").mem_gb is None


def test_gpu_types_of_digits_parts_and_nodes_that_are_down(fake: Fake, tmp_path: Path) -> None:
    fake.say("partitions", "PartitionName=all MaxTime=UNLIMITED State=UP\n")
    rows = (
        "a|24|64000|gpu:3090:8(S:0-1),shard:3090:16|x|idle|none",
        "b|64|512000|lustre:1,gpu:1g.10gb:56,gpu:a100:4(S:0,2)|x|mixed|none",
        "c|64|512000|gpu:2080ti:no_consume:4|x|idle|none",
        "d|64|512000|gpu:h100:8|x|down*|fan",
    )
    fake.say("nodes", "\n".join(rows) + "\n")
    draft(tmp_path / "one.yaml")
    text = (tmp_path / "one.yaml").read_text()
    assert load_profile(tmp_path / "one.yaml").resources("sft").gpus_per_node == "a100:4"
    for shown in ("1 nodes of 8 3090", "1 nodes of 56 1g.10gb", "1 nodes of 4 2080ti"):
        assert shown in text
    assert "h100," not in text, "no node with them is up"
    fake.say("nodes", rows[0] + "\n")
    draft(tmp_path / "two.yaml")
    sft = load_profile(tmp_path / "two.yaml").resources("sft")
    assert sft.gpus_per_node == "3090:4" and (sft.cpus, sft.tasks_per_node) == (3, 4)
    (node,) = ask_nodes("all")
    assert node.fits(sft) and not node.fits(replace(sft, gpus_per_node="3090:16"))


@pytest.mark.parametrize("name", ["0042", "1234", "1e3", "null", "true", "on"])
def test_names_that_yaml_reads_as_something_else(name: str, fake: Fake, tmp_path: Path) -> None:
    fake.say("partitions", f"PartitionName={name} MaxTime=UNLIMITED State=UP\n")
    fake.say("nodes", "n1|16|64000|gpu:h100:4|a|idle|none\n")
    (fake.folder / "bin/sacctmgr").write_text(
        f"#!/bin/bash\ncase $* in *DefaultAccount,QOS,*) echo '|{name}|{name}|normal|';; esac\n"
    )
    draft(tmp_path / "one.yaml")
    profile = load_profile(tmp_path / "one.yaml")
    assert profile.partition == profile.account == profile.resources("sft").partition == name


def test_the_test_cluster_lets_an_account_and_a_qos_alone_use_gpus(
    lab: Lab, kit: Kit, tmp_path: Path
) -> None:
    if not lab.accounting:
        pytest.skip("no accounts without slurmdbd")
    manage = ("sacctmgr", "--quiet", "--immediate")
    lab.ask(*manage, "add", "account", "gpus", "Organization=lab", "Description=gpus")
    lab.ask(*manage, "add", "user", slurm_cli.user_name(), "account=gpus", "qoslevel=normal,high")
    lab.ask(*manage, "modify", "qos", "high", "set", "MaxWall=00:20:00", "MaxTRES=gres/gpu=2")
    closed = ("AllowAccounts=gpus", "AllowQos=high")
    try:
        for name in ("gpu", "scavenge"):
            lab.ask("scontrol", "update", f"partitionname={name}", *closed)
        draft(tmp_path / "drafted.yaml")
        sft = load_profile(tmp_path / "drafted.yaml").resources("sft")
        assert (sft.account, sft.qos) == ("gpus", "high")
        assert (sft.gpus_per_node, sft.tasks_per_node, sft.minutes) == ("h100:2", 2, 20)
        facts = kit.done("submit", "--cluster", str(tmp_path / "drafted.yaml"), study=TINY)
        assert facts["submitted"] == facts["cells"] and not facts["waits"]
    finally:
        kit.call("cancel", study=TINY)
        lab.wait()
        for name in ("gpu", "scavenge"):
            lab.ask(
                "scontrol", "update", f"partitionname={name}", "AllowAccounts=ALL", "AllowQos=ALL"
            )
        lab.ask(*manage, "modify", "qos", "high", "set", "MaxWall=-1", "MaxTRES=gres/gpu=-1")
        lab.ask(*manage, "delete", "user", slurm_cli.user_name(), "account=gpus")
        lab.ask(*manage, "delete", "account", "gpus")
