"""What training without torch costs, beside torch."""
