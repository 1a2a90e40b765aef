"""What a run shows: progress line, TensorBoard, pictures."""
