"""What a run leaves for people: terminal, page, tables, plots, samples, trackers."""
