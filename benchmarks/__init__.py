"""Benchmarks of `likely` against its peers: `python -m benchmarks head`, `python -m benchmarks losses`.

`README.md` says how they are run and how the numbers are defined, `NOTES.md` what was measured and what was rejected.
"""
