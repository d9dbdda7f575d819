"""Allows `python -m stepseal`."""

from stepseal.cli import main

main()
