"""Training: state, the step that all stages share, checkpoints, and the flat loop to fork."""
