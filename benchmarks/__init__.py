"""Where the performance figures of the kit come from: one script, one table."""
