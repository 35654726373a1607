"""Trained models measured on images: what the stages that write reports share."""
