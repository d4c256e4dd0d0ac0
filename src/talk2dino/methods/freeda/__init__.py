"""FreeDA: a bank of prototypes, the segmenter, and the method."""
