"""Stages: one file each, one `run(config) -> Artifact` each; they meet only through artifacts on disk."""
