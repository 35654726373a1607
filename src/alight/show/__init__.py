"""What is on the disk, said in words: `alight info` and `alight report`."""
