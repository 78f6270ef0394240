"""What a student is asked to minimise."""
