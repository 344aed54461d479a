"""A running stream as a web page."""
