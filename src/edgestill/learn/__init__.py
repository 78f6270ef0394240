"""Learning on a device and across a fleet without torch: additive statistics, heads, leverage, drift."""
