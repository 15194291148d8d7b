"""Tasks: what is asked, which labels there are, where the examples come from."""
