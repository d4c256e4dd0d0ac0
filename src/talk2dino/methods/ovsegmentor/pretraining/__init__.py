"""OVSegmentor's pretraining: both stages, from a recipe to a folder of weights."""
