"""Distillation: a teacher's answers or distributions, carried over to a student with another tokenizer."""
