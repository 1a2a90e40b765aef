"""Trains methods and numbers of steps on the same data, and compares them."""
