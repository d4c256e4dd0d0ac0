"""Talk2DINO: CLIP's text mapped into DINO's patch space (ICCV 2025)."""
