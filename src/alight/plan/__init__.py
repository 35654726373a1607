"""The cost of a training recipe on this machine, estimated from a short measured run."""
