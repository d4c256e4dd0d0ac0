"""FreeDA: a bank of prototypes, superpixels, and the method."""
