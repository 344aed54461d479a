"""Run an explaining graph: needs neither torch nor anything above this package."""
