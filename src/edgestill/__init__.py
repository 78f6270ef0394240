"""Distil a large model, deliver it to a fleet, let both answer together.

onnxruntime reports to its maker from the moment it is imported, and no call stops that; the variable does, if it is there
first. So it is set here, before any part of edgestill could import onnxruntime. What a user has set stays.
"""

import os

__version__ = "0.1.0"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
