"""Networks whose features metrics compare: Inception and VGG, and where their weights are."""
