"""`plan --add FILE --contrast TEXT`: what one more control takes, and what it does to the tests."""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from core.declaration import read_declaration, short
from study.commands.common import load, load_cluster, parallel_plans
from study.spec import expand
from study.spec.addition import read_addition


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--add",
        type=Path,
        metavar="FILE",
        help="print only what the arms of this YAML file take, with the corpora and other "
        "sections that it has for them; --contrast says what they are compared with",
    )
    parser.add_argument(
        "--contrast",
        action="append",
        default=[],
        metavar="TEXT",
        help='print only what one more contrast does, such as "treatment animal, control urban"; '
        "it may have every key of a contrast, and the option may be repeated",
    )


def plan_addition(args: argparse.Namespace) -> None:
    """Print new cells, hours, money, the families' levels and the power of what is added."""
    from analysis.power import read_pilot  # scipy takes a second to import
    from study.forecast import addition_cost
    from study.forecast.planned_contrasts import family_sizes, planned_contrasts

    addition = read_addition(args.add, args.contrast)
    study, base = load(args)
    larger, _ = load(args, addition)
    profile = load_cluster(args)
    before, after = (expand.in_order(expand.analysis(s, base)) for s in (study, larger))
    price = addition_cost.price(before, after, base, parallel_plans(profile), profile)
    names = [contrast["name"] for contrast in addition.contrasts]
    families = dict.fromkeys(contrast["family"] for contrast in addition.contrasts)
    sizes_before, sizes_after = Counter[str](), Counter[str]()
    rows = []
    if names:
        pilot = read_pilot(args.variances) if args.variances else None
        sizes_before = family_sizes(study, before[-1])
        sizes_after = family_sizes(larger, after[-1])
        rows = addition_cost.family_rows(
            planned_contrasts(study, before[-1]),
            planned_contrasts(larger, after[-1]),
            names,
            pilot,
        )
    sizes = {family: (sizes_before[family], sizes_after[family]) for family in families}
    declared = (read_declaration(base) or {}).get("sha256")
    if args.json:
        facts = {"study": study.study, **asdict(price), "declared": declared}
        return print(json.dumps(facts | {"families": sizes, "contrasts": rows}, indent=1))
    print(addition_cost.show_price(price))
    if names:
        print("\n" + addition_cost.show_families(rows, sizes))
    if declared and names:
        print(
            f"the study was declared as {short(declared)} before its first score: the report will "
            "say of a contrast that is added now that it was not declared"
        )
