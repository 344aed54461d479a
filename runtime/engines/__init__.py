"""Inference engines behind one small protocol, each imported only when asked for."""
