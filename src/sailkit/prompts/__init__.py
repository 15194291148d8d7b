"""Prompts: rendering for each model, protection against special tokens in untrusted text, and parsing of answers."""
