"""Training with torchtune's parts: from a start checkpoint and text to a checkpoint."""
