"""Evaluation: a model on a task, two models against each other, recorded outputs read again."""
