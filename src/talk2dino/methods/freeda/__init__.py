"""FreeDA: a bank of prototypes, and the method."""
