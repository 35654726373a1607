"""What a training recipe costs on this machine, estimated from a short measured run."""
