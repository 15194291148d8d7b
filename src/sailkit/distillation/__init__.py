"""Distillation: training a student on a teacher's answers or distributions, also across tokenizers."""
