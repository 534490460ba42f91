"""Fits of whole estimators: problems, who fits them, and the time to a given accuracy."""
