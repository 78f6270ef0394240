"""The agent on a device: keeps it up to date, serves its model, escalates, learns and reports."""
