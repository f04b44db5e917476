"""Where searches and rows meet: one process for each trial."""
