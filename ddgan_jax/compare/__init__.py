"""Trains and compares methods on the same data."""
