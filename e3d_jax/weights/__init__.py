"""Reading and writing weights: safetensors folders, the bundled mini system."""
