"""Patches between two versions of a file: small to send, bounded to apply, and believed only by their result's hash."""
