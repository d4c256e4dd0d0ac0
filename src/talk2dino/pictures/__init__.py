"""Pictures, drawing, and what is found in a picture."""
