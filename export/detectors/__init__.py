"""Read what a detector's outputs hold: one file for each format, all of one shape."""
