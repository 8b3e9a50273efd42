"""Keys and values of settings files that have another name since version 0.2.0 (CHANGELOG.md)."""

RENAMED_KEYS = {
    # study file
    "draws": "max_attempts",
    "avoid": "decontaminate_against",
    "score": "quality_filter",
    "at_least": "min_score",
    "near_duplicates": "dedup_threshold",
    "form": "question_variant",
    "one_run": "shared_run",
    "judge_missing": "judge_max_missing",
    "judge_asks": "judge_max_attempts",
    "of": "treatment",
    "against": "control",
    "on": "benchmarks",
    "of_dose": "treatment_dose",
    "against_dose": "control_dose",
    "roles": "claim_roles",
    # recipe
    "tokens_per_update": "tokens_per_step",
    "rows_per_update": "global_batch_size",
    "max_updates": "max_steps",
    "warmup_updates": "warmup_steps",
    "rows_per_rank": "micro_batch_size",
    "save_minutes": "checkpoint_minutes",
    "held_out_every": "eval_every",
    "load_best": "load_best_checkpoint",
}
# By key.
RENAMED_VALUES = {
    "served_by": {"kit": "dummy"},
    "activation_checkpointing": {"false": "none", "true": "full"},
}
