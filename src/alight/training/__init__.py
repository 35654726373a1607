"""Training: optimizer and schedule, averaging, checkpoints, and the bookkeeping of a run."""
