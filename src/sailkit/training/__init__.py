"""Training: fine-tune models on search-augmented instructions with TRL, report on runs, publish models."""
