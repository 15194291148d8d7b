"""Data: training examples and tasks built from labelled search results, with their leaks and cards."""
