"""Labeling: judge search results informative or distracting, train labelers, and measure them against people."""
