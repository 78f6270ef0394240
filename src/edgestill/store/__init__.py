"""Blobs: bytes kept under their digest, in memory or in files, under one set of laws."""
