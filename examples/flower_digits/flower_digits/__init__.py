"""Clients who each saw a few digits only make one student together, on Flower."""
