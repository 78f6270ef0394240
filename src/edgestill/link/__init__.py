"""Sockets out: transport, ranged downloads, the hub's control plane, and remote models; bounded in time and bytes."""
