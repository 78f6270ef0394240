"""The demonstration: the whole route on real data, with the hub and every device a process of its own."""
