"""Retrieval: search a corpus, the web or a recording for each instruction."""
