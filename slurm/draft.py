"""Draft a cluster profile from what Slurm says of the cluster, each value with its source.

A line marked <- is for a person: Slurm offers several values, or does not know any.
"""

from pathlib import Path

from core.errors import UserError
from core.files import write_atomically
from core.gpu_specs import find_gpu
from core.strict_yaml import parse_yaml
from slurm import slurm_cli
from slurm.cluster_limits import Cluster, Rows, ask_cluster, ask_nodes, ask_rows
from slurm.draft_requests import (
    LONG,
    MOST_RANKS,
    Asker,
    Charge,
    Partition,
    Request,
    listed,
    of_gpu_stage,
    of_plain_stage,
)
from slurm.profile import Resources

# Time limits in minutes; those of partitions and QOS may be less. A job that reaches one is
# requeued.
HOUR = 60
TRAINING = 480
_COLUMNS = ("Cluster", "Account", "DefaultAccount", "QOS", "DefaultQOS")


def draft(path: Path) -> list[str]:
    """Write a profile to the file `path`. Returns what a person has to choose or to look up.

    Raises UserError where the file exists, Slurm does not answer, or no partition has nodes.
    """
    if path.exists():
        fix = "give another file, or remove it first"
        raise UserError(where=str(path), what="exists; a draft replaces no profile", fix=fix)
    with slurm_cli.clean_environment():
        slurm_cli.require_slurm()
        cluster = ask_cluster()
        lines = _lines(cluster)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(lines) + "\n")
    return [line.partition("<- ")[2] for line in lines[2:] if "<- " in line]


def _partitions(cluster: Cluster) -> list[Partition]:
    accounts = {row["Account"] for row in cluster.user}
    partitions = []
    for name, facts in cluster.partitions.items():
        allowed = listed(facts, "AllowAccounts")
        is_ours = not allowed or not accounts.isdisjoint(allowed)
        if is_ours and facts.get("State", "UP") == "UP" and (nodes := ask_nodes(name)):
            partitions.append(Partition(name, facts, nodes))
    if not partitions:
        raise UserError(where="sinfo", what="no partition that is up has nodes for you")
    return sorted(partitions, key=lambda partition: partition.order)


def _lines(cluster: Cluster) -> list[str]:
    """The profile's lines. The first two say what it is."""
    partitions = _partitions(cluster)
    rows, trouble = _associations()
    asker = Asker(cluster, _charges(rows))
    first = {p.name: asker.ask(_first_request(p)) for p in partitions}
    taken = [p for p in partitions if not first[p.name].refusal] or partitions
    refused = [p.name for p in partitions if p not in taken]
    plain = next((partition for partition in taken if not partition.gpus), taken[0])
    usual = asker.ask(of_plain_stage(plain, HOUR, 2, 8)).charge
    asker = asker.after(usual)
    with_gpus = [partition for partition in taken if partition.gpus]
    return [
        "# Drafted by `doctor --draft`. Look at the lines marked with an arrow, then let doctor",
        "# check it. Sources in brackets: sinfo, scontrol show partition and config, sacctmgr.",
        *_partition_line(plain),
        *(
            f"# not partition {name}: {first[name].refusal} (sbatch --test-only)"
            for name in refused
        ),
        *_accounts(rows, trouble, usual),
        "",
        "stages:",
        *_plain_stages(plain, asker, usual),
        *_gpu_stages(with_gpus, asker, usual),
        "",
        *_settings(cluster),
    ]


def _first_request(partition: Partition) -> Resources:
    """What tells whether Slurm takes jobs of this user in a partition."""
    for kind, number in partition.gpus:
        return of_gpu_stage(partition, kind, number, limit=HOUR, ranks=1)
    return of_plain_stage(partition, limit=HOUR, cpus=1, mem_gb=1)


def _associations() -> tuple[Rows, str]:
    """The user's accounts and QOS on this cluster; or none, and what to say about it."""
    if not slurm_cli.has_accounts():
        return [], "# no account, no qos: this cluster keeps none (AccountingStorageType)"
    try:
        rows = ask_rows("user", slurm_cli.user_name(), "withassoc", columns=_COLUMNS)
    except UserError as error:
        return [], f"# account: NAME  # <- sacctmgr does not answer: {error.problems[0].what}"
    # Clusters may share one slurmdbd.
    here = ("", slurm_cli.setting("ClusterName").lower())
    rows = [row for row in rows if row["Cluster"].lower() in here]
    return rows, "" if rows else "# account: NAME  # <- sacctmgr lists none for you: ask your site"


def _charges(rows: Rows) -> list[Charge]:
    """The accounts and QOS to ask for: the default ones, then each other of the user."""
    charges: dict[Charge, None] = {}
    for row in sorted(rows, key=lambda row: row["Account"] != row["DefaultAccount"]):
        names = [None, *filter(None, row["QOS"].split(","))]
        charges |= {(row["Account"], name): None for name in names}
    return list(charges) or [(None, None)]


def _line(text: str, comment: str) -> str:
    return f"{text:<52}  # {comment}"


def _word(name: str) -> str:
    """A name as YAML reads it again: `on` as it is, `null` and `1e3` in quotes."""
    value, _ = parse_yaml(f"[{name}]", name)
    return name if value == [name] else f"'{name}'"


def _partition_line(plain: Partition) -> list[str]:
    why = "the default" if plain.facts.get("Default") == "YES" else "of those without GPUs"
    choice = f"{why} (scontrol show partition)"
    if plain.gpus:
        choice = "<- every partition has GPUs: take the one that may run jobs without"
    return [_line(f"partition: {_word(plain.name)}", choice)]


def _accounts(rows: Rows, trouble: str, usual: Charge) -> list[str]:
    """The lines about account and QOS."""
    if not rows:
        return [trouble]
    names = sorted({row["Account"] for row in rows})
    account, qos = usual
    is_default = account == rows[0]["DefaultAccount"]
    why = "this is your default" if is_default else "the first that this partition takes"
    source = "the only one (sacctmgr)"
    if len(names) > 1:
        source = f"<- who pays: {', '.join(names)}; {why} (sacctmgr)"
    lines = [_line(f"account: {_word(account or '')}", source)]
    row = next(row for row in rows if row["Account"] == account)
    others = [name for name in row["QOS"].split(",") if name]
    if qos:
        text = f"<- {', '.join(others)}: this partition takes no job without (sacctmgr, sbatch)"
        lines.append(_line(f"qos: {_word(qos)}", text))
    elif len(others) > 1:
        default = row["DefaultQOS"] or "the account's"
        text = f"<- {', '.join(others)}: {default} without this line (sacctmgr)"
        lines.append(_line(f"# qos: {_word(others[0])}", text))
    return lines


def _plain_stages(partition: Partition, asker: Asker, usual: Charge) -> list[str]:
    memories = [most for node in partition.nodes if (most := partition.memory(node, node.cpus))]
    cores = _range([partition.cores(node) for node in partition.nodes])
    has = f"{cores} cores, {_range(memories)} GiB" if memories else f"{cores} cores"
    limit = f"time limit {_shown(partition)}"
    rows = (
        ("default", HOUR, 2, 8, f"{limit}; nodes have {has} (sinfo)"),
        ("model", HOUR, 4, 64, "copies and checks start models"),
        ("documents", LONG, 2, 8, "calls the writer's API"),
        ("judge", LONG, 2, 8, "calls the judge's API"),
    )
    lines = []
    if not memories:
        lines.append("  # <- memory: Slurm does not know that of the nodes (RealMemory): no mem_gb")
    for stage, wanted, cpus, mem_gb, comment in rows:
        request = asker.ask(of_plain_stage(partition, wanted, cpus, mem_gb))
        lines.append(_stage(stage, request, usual, comment, mem_gb=bool(memories)))
    return lines


def _gpu_stages(partitions: list[Partition], asker: Asker, usual: Charge) -> list[str]:
    """The lines of trainings and evaluations, on the kind of GPUs of which there are most."""
    if not partitions:
        return ["  # <- no partition lists GPUs (sinfo): trainings would run on the CPU"]
    ordered = sorted(
        ((partition, *group) for partition in partitions for group in partition.gpus),
        key=_gpu_order,
    )
    partition, kind, number = ordered[0]
    nodes = partition.gpus[kind, number]
    lines = []
    if len(ordered) > 1:
        lines.append("  # <- GPUs: choose partition and type of the four stages below (sinfo)")
        for of, type_, per_node in ordered:
            count = len(of.gpus[type_, per_node])
            shown = f"{count} nodes of {per_node} {type_ or 'GPUs'}"
            lines.append(f"  #   partition {of.name}: {shown}, time limit {_shown(of)}")
    if partition.has_whole_nodes and number > 1:
        gives = f"partition {partition.name} gives whole nodes (OverSubscribe)"
        lines.append(f"  # <- {gives}: an evaluation of one GPU pays for {number}")
    features = sorted(set.intersection(*(node.features for node in nodes)) - {"(null)"})
    if gpu := find_gpu(kind):
        lines.append(f"  # {kind}: forecast as {gpu.name} (core/gpu_specs.py)")
    else:
        of_nodes = f"; nodes have the features {', '.join(features)}" if features else ""
        says = f"Slurm says {kind or 'none'}{of_nodes}"
        lines.append(f"  # gpu_type: h100  # <- add it to these stages: {says}")
    ranks = min(MOST_RANKS, number)
    cores = min(partition.cores(node) for node in nodes)
    memory = any(partition.memory(node, node.cpus) for node in nodes)
    for stage, wanted, gpus in (
        ("midtrain", TRAINING, ranks),
        ("sft", TRAINING, ranks),
        ("generate", HOUR * 2, 1),
        ("likelihood", HOUR * 2, 1),
    ):
        request = asker.ask(of_gpu_stage(partition, kind, number, wanted, gpus))
        comment = f"of {number} GPUs a node, {cores} cores (sinfo)"
        lines.append(_stage(stage, request, usual, comment, mem_gb=memory))
    lines.append("  # gpu_memory_gb: 80  # <- in midtrain and sft, for `plan`: Slurm does not say")
    return lines


def _gpu_order(group: tuple[Partition, str, int]) -> tuple[object, ...]:
    """Nodes that are up and not taken away, then GPUs that the kit knows, then the most GPUs."""
    partition, kind, number = group
    is_unknown = bool(kind) and find_gpu(kind) is None
    total = number * len(partition.gpus[kind, number])
    return (*partition.order[:2], is_unknown, -total, partition.order, kind)


def _stage(stage: str, request: Request, usual: Charge, comment: str, mem_gb: bool) -> str:
    """A stage's line. `mem_gb`: whether a request without memory is one that Slurm wanted so."""
    resources = request.resources
    fields = [f"minutes: {resources.minutes}"]
    if resources.gpus_per_node:
        fields.append(f"tasks_per_node: {resources.tasks_per_node}")
        fields.append(f"gpus_per_node: {resources.gpus_per_node}")
    fields.append(f"cpus: {resources.cpus}")
    if resources.mem_gb:
        fields.append(f"mem_gb: {resources.mem_gb:g}")
    elif options := resources.sbatch:
        fields.append("sbatch: {mem-per-cpu: " + f"{options['mem-per-cpu']}}}")
        comment += "; sbatch refuses mem_gb here"
    elif mem_gb:
        comment += "; without mem_gb, which sbatch refuses here"
    if resources.gpus_per_node:
        fields.append(f"partition: {_word(resources.partition or '')}")
    for name, value, default in zip(("account", "qos"), request.charge, usual, strict=True):
        if value and value != default:
            fields.append(f"{name}: {_word(value)}")
    if request.refusal:
        comment = f"<- refused: {request.refusal}"
    return _line(f"  {stage}: {{{', '.join(fields)}}}", comment)


def _settings(cluster: Cluster) -> list[str]:
    config = slurm_cli.settings()
    scratch = config.get("TmpFS", "/tmp")
    limits = "those of accounts and QOS are read at each submission"
    if not cluster.keeps_limits:
        limits = "Slurm enforces none (AccountingStorageEnforce)"
    return [
        _line(f"scratch: {scratch}/$SLURM_JOB_ID", "TmpFS (scontrol show config)"),
        "# cache: /project/me/cache  # <- a shared folder for compiled kernels and downloads",
        "# offline: true  # <- where nodes have no internet: doctor looks from a node",
        "# interface: ib0  # <- for trainings over several nodes (ip -brief address on one)",
        "# setup: [module load gcc]  # <- where nodes have no C compiler: doctor looks",
        _line("signal_seconds: 300", "8B writes 96 GB then: doctor measures the rate"),
        _line("array_parallelism: 32", "leaves room for others"),
        f"# max_array: {slurm_cli.largest_array()}, as Slurm says (scontrol show config)",
        f"# max_submit: {limits}",
    ]


def _range(values: list[float] | list[int]) -> str:
    least, most = min(values), max(values)
    return f"{least:.0f}" if round(least) == round(most) else f"{least:.0f} to {most:.0f}"


def _shown(partition: Partition) -> str:
    longest = partition.max_minutes
    return "none" if longest == float("inf") else f"{longest:g} min"
