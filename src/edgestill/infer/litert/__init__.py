"""LiteRT as an engine for ONNX models: each is written down as TFLite when it is loaded, on the device, in milliseconds."""
