"""Run a study's cells as Slurm jobs, submitted through submitit.

This room knows cells and their inputs, but not what a cell does.
"""
