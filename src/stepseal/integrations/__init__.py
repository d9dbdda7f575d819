"""Ways in for trainers of other projects; each file stands alone, and imports nothing of theirs."""
