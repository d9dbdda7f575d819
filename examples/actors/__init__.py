"""Jobs of several actors or processes."""
