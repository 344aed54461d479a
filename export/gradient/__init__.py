"""Gradients as ONNX operators: ``reverse`` walks a graph back by the ``rules``."""
