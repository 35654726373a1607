"""Data: images in, crops, latents on disk, and the order in which they are drawn."""
