"""Documents: templates, their slots, the writer's calls and the corpora they make."""
