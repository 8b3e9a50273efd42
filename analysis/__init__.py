"""Scored samples in; one long table, statistics, LaTeX, figures and a report out."""
