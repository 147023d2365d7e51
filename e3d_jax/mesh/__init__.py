"""From a fitted field to a mesh file, and pictures of it."""
