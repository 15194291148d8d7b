"""Files: read and write JSON Lines, tables, YAML and archives; write files and folders atomically."""
