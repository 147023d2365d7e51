"""Where examples come from: synthetic objects, records, loaders."""
