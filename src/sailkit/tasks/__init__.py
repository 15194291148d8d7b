"""Tasks: their labels, their examples, and the prompts that ask for them."""
