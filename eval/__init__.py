"""Evaluation: checkpoints in, scored samples out, through vLLM, Inspect and lm-eval."""
