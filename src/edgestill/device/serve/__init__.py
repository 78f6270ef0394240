"""A model behind HTTP for other programs and machines: the Open Inference Protocol on a device or a gateway.

What is asked and answered is `infer.serving`'s; here is who may ask, and who listens.
"""
