"""Training: search-augmented instruction learning with TRL, its publishing and its report."""
