"""Files: those of others, read without trust, and those that are written here."""
