"""Inpainting, strokes, interpolation and inversion with a trained generator."""
