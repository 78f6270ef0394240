"""Samples: where they come from, which view of them is shown, and the seeds that decide it."""
