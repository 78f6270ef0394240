"""How the hub's schema grew: an Alembic environment that travels inside the package."""
