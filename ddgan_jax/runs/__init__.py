"""Trained runs on disk: workdir, checkpoints, loading."""
