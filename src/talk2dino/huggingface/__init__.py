"""Our models as transformers' own kind: imported by talk2dino.autoload, when transformers is."""
