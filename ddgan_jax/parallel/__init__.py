"""Sharding over devices, consensus between processes, and compilation."""
