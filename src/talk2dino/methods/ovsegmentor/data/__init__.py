"""Captions and images for OVSegmentor's pretraining: preparing them, and batches of them."""
