"""Training a projection from stored features."""
