"""From records to batches: transforms, datasets, samplers."""
