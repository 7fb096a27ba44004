"""Examples in, batches out: sources, transforms, and the Grain pipeline."""
