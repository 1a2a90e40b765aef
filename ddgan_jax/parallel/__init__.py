"""Devices, processes and programs: sharding, agreement between processes, compiling."""
