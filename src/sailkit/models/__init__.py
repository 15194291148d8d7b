"""Models: causal language models here or behind an endpoint, and encoders."""
