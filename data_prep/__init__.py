"""Pixels and geometry: slides, tissue, tiles, annotations and stains."""
