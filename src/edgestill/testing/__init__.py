"""Public fakes and law suites: what our own tests use, for tests of code built on edgestill."""
