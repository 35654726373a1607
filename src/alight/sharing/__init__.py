"""What it takes to hand a trained model to somebody else: its records, a model card, the hub."""
