"""Frozen models: vision, CLIP's two towers, and what loads their weights."""
