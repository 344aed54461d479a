"""Measure how long explanations take on this machine."""
