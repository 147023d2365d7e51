"""Training: state, one step per stage, checkpoints, and the flat loop that people fork."""
