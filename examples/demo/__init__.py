"""The demo: a training job that is killed in the middle of a save, and goes on as if nothing happened."""
