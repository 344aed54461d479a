"""Serve a running stream as a web page."""
