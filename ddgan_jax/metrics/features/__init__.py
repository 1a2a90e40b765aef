"""Feature networks of the metrics, Inception and VGG, and their weights."""
