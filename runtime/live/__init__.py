"""Explanations over video: sources, frames, drawing, writing."""
