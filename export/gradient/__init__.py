"""Record gradients as ONNX operators: ``reverse`` applies one of the ``rules`` to each node."""
