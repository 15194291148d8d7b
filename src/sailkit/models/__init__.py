"""Models: local causal language models, models behind an endpoint, and sentence encoders."""
