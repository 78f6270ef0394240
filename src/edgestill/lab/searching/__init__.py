"""From a budget to a student: what a candidate takes, which candidates there are, and which of them is best."""
