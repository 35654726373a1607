"""Formats of other code: published checkpoints and latents, in and back out."""
