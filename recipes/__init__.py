"""Training: from a checkpoint and text to a checkpoint, by torchtune's parts."""
