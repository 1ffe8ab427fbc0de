"""Phantoms: morphologies (vessels, neurites, nuclei), the optics and the camera that see them."""
