"""What the queued jobs of a study run: cells of which version of its file, and which code."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.cell.publish import read_start
from slurm.slurm_cli import Queued
from slurm.snapshot import VERSION
from slurm.submissions import CONTINUE, Group

Listed = list[tuple[Group, dict[int, Queued]]]


def analysis_of(cells: Iterable[Cell]) -> str | None:
    """The identity of the analysis among the cells of a study: it tells versions of its file apart.

    None where the cells have none.
    """
    return next((cell.identity for cell in cells if cell.stage == "analysis"), None)


def listed(groups: list[Group], queue: list[Queued]) -> Listed:
    """The groups on record that have jobs in the queue, each with its jobs by index of the task."""
    return [(group, jobs) for group in groups if (jobs := group.in_queue(queue))]


def orphans(queued: Listed, cells: list[Cell], done: set[str]) -> dict[str, list[str]]:
    """The jobs that run nothing of the study file as it is now, with the identities of their cells.

    A job that also runs an unfinished one of `cells` is none. A job that submits what the limit on
    jobs left over (it has no cells) is one if it was submitted for another version of the file.

    `cells`: all of the study. `done`: identities of finished cells.
    """
    planned = {cell.identity for cell in cells}
    jobs = {}
    for group, by_index in queued:
        for index, job in by_index.items():
            identities = {*group.tasks[index]}
            if not identities:
                is_orphan = is_outdated(group, cells)
            else:
                is_orphan = not identities <= planned and planned.isdisjoint(identities - done)
            if is_orphan:
                jobs[job.job] = group.tasks[index]
    return jobs


def is_outdated(group: Group, cells: list[Cell]) -> bool:
    """Whether a group was submitted for another version of the study file."""
    analysis = analysis_of(cells)
    return None not in (group.analysis, analysis) and group.analysis != analysis


def is_superseded(base: Path, cells: list[Cell]) -> bool:
    """Whether the study in `base` was started with another version of its file since these cells.

    They were submitted before.
    """
    analysis = analysis_of(cells)
    return bool(analysis) and read_start(base).get("analysis", analysis) != analysis


def orphan_rows(jobs: dict[str, list[str]], base: Path) -> list[dict[str, Any]]:
    """Rows of job and cells, named by their folders: the study file may no longer have them.

    `jobs`: of `orphans`.
    """
    if not jobs:
        return []
    labels = {
        folder.name[-8:]: f"{folder.parent.name} {folder.name[:-9]}"
        for folder in base.glob("*/*-????????")
    }
    return [
        {"job": job, "cells": [labels.get(name[:8], name[:8]) for name in identities]}
        for job, identities in jobs.items()
    ]


def waiting_for(jobs: Iterable[str], queued: Listed) -> list[str]:
    """The other queued jobs that wait for one of `jobs`, and never start once it is cancelled."""
    ended = {*jobs}
    ended |= {job.partition("_")[0] for job in ended}
    return [
        job.job
        for group, by_index in queued
        for job in by_index.values()
        if job.job not in ended and not ended.isdisjoint(re.split("[:,]", group.after or ""))
    ]


def code_rows(queued: Listed, current: Path) -> list[dict[str, Any]]:
    """The code of the queued jobs: a row for each copy, that of most jobs first.

    `current`: the copy that a job submitted now runs. A row has code (the copy's folder; None where
    it is not on record), commit and dirty (`core.cell.manifest.code_version`), jobs (how many),
    current.
    """
    jobs = Counter(group.code for group, by_index in queued for _ in by_index)
    return [
        {"code": code, **_version(code), "jobs": count, "current": code == str(current)}
        for code, count in jobs.most_common()
    ]


def _version(code: str | None) -> dict[str, Any]:
    version: dict[str, Any] = {"commit": None, "dirty": None}
    with suppress(OSError, ValueError):
        version |= json.loads(Path(code or "", VERSION).read_text(encoding="utf-8"))
    return version


def pending_continuations(queued: Listed, cells: list[Cell]) -> tuple[str | None, list[str]]:
    """The pending job that submits the rest of these cells, and those of other versions."""
    current, outdated = None, []
    for group, by_index in queued:
        for job in by_index.values() if group.kind == CONTINUE else ():
            if job.state == "PENDING" and is_outdated(group, cells):
                outdated.append(job.job)
            elif job.state == "PENDING":
                current = job.job
    return current, outdated
