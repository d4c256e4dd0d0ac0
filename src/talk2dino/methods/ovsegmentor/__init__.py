"""OVSegmentor (CVPR 2023, arXiv 2301.09121): groups of patches, learned from captions alone."""
