"""Metrics that need no weights: one idea a file, plain functions of frames."""
