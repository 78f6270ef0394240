"""The training graph: one step of gradient descent as a plain ONNX file, for devices that have an engine and no torch."""
