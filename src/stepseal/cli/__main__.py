"""Allows `python -m stepseal.cli`."""

from stepseal.cli import main

main()
