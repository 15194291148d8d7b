"""Reading and writing files: JSON Lines, tables, YAML, archives; whole files and folders or none."""
