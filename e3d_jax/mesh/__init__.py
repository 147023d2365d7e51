"""Meshes: extraction from a field, texturing, files and previews."""
