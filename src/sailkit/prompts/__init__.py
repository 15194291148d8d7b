"""Prompts: rendering them for each model, keeping untrusted text from becoming structure, and reading answers."""
