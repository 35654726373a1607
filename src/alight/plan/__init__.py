"""The cost of a recipe on this machine, estimated from a short measured run."""
