"""Answer one question with search: in the terminal, from Python and as a server."""
