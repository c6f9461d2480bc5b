"""What a run takes, before it is run: FLOP, memory, disk; and what to do about it."""
