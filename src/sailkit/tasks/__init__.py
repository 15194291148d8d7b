"""Tasks: labels, examples, and prompts that ask for a label."""
