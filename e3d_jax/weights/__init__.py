"""Weights on disk: folders of safetensors, released formats, and the bundled mini system."""
