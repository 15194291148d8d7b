"""Statistics: metrics, confidence intervals and paired tests."""
