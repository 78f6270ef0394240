"""`python -m edgestill.cli`: the program `edgestill`, where its script is not on the path."""

from edgestill.cli import main

main()
