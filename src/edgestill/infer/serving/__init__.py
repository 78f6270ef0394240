"""Models behind the Open Inference Protocol v2 (REST, with binary tensors): one core for hub, gateway and device.

No sockets and no web framework: bytes come in, bytes go out. Who listens, and who may ask, is decided above.
"""
