"""Data: build training data from labelled search results or from tasks, remove test items, write data cards."""
