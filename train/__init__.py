"""Training for cleaner maps. Needs torch: import ``whycam.train.aft`` or ``.classifier``."""
