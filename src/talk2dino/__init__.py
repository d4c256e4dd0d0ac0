"""Talk2DINO: open-vocabulary segmentation by mapping CLIP text into DINO patch space."""
