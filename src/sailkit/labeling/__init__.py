"""Labeling: which search results are informative and which distracting, and how good a labeler is."""
