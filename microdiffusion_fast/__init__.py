"""Depth-resolved volumes from axially averaged projections."""
