"""Sharing of trained models: their records, a model card, uploads to the hub."""
