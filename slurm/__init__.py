"""A study's cells as Slurm jobs, submitted through submitit. Knows cells and when they may start, not what they do."""
