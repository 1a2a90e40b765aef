"""Measures how fast a config compiles, trains, samples and reads data on this machine."""
