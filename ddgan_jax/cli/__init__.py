"""Shared code of the commands: start-up, flags, errors, and reading and writing images."""
