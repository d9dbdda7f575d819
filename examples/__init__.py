"""Programs that use stepseal; see README.md."""
