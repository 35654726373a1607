"""Trained models measured on images, for all stages that write reports."""
