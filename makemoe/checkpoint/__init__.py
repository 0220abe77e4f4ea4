"""What a run keeps: how it is written and read, and what it may name and hold."""
