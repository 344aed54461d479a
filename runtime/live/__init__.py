"""Explain video: sources, frames, drawing, writing."""
