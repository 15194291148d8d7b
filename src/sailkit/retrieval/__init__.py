"""Retrieval: search results for instructions, from a corpus, the web or a recording."""
