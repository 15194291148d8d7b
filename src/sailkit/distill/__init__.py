"""Distilling a model into a smaller one, also across tokenizers: a cached teacher, byte alignment, a sparse loss."""
