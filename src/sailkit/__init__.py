"""sailkit: search-augmented language models whose measurements survive an audit.

Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

__version__ = "0.1.0"
