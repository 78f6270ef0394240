"""What may be believed: bytes in, a trusted object or an error out; no sockets, and no clock of its own."""
