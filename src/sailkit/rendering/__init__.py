"""Rendering: results as HTML, Markdown and terminal text."""
