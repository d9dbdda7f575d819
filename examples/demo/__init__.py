"""The demo: a training job is killed in the middle of a save and goes on as if nothing happened."""
