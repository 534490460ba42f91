"""Demonstrations on real data and real models; each is a module to run: `python -m examples.languages --help`."""
