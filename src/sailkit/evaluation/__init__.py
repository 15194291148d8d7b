"""Evaluation: measuring models on tasks, comparing predictions, and rescoring recorded outputs."""
