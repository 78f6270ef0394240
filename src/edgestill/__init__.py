"""Distil a large model, deliver it to a fleet, let both answer together."""

__version__ = "0.1.0"
