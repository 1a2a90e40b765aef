"""What all commands share: their start, their errors, their picture files."""
