"""The words OVSegmentor looks for in captions, and the 73 classes they stand for (appendix A)."""

from __future__ import annotations

_FILTER = """
people man men woman women girl boy lady kid child children baby student bride groom couple
prince princess car bus truck motorcycle train bicycle boat aeroplane airplane motorbike
bike cup bottle bowl knife spoon glass fork chair table bench clock laptop light vase plant
remote microwave toaster oven mouse keyboard sofa monitor desk tv TV couch flower
refrigerator house building hotel handbag umbrella book backpack phone shirt tie suitcase
T-shirt bag box sink bed toilet cat dog horse bird cow sheep elephant bear zebra giraffe
ball racket skateboard skis snowboard surfboard kite pizza cake apple banana sandwich orange
carrot donut
"""
FILTER_WORDS = tuple(_FILTER.split())
"""Captions with one of these are kept. `TV` and `tv` are both listed."""

_SYNONYMS = {
    "people": "people man men woman women girl boy lady kid child children baby student bride "
    "groom couple prince princess",
    "aeroplane": "airplane",
    "motorcycle": "motorbike",
    "bicycle": "bike",
    "tv": "TV",
    "table": "desk",
    "sofa": "couch",
    "house": "building hotel",
    "shirt": "T-shirt T-Shirt",
    "bag": "handbag",
}
SYNONYMS = {word: name for name, words in _SYNONYMS.items() for word in words.split()}
"""Word -> class, where they differ (and people, which stands for itself): 29 words."""

_CLASSES = """
people car bus truck motorcycle train bicycle boat aeroplane cup bottle bowl knife spoon
glass fork chair table bench clock laptop light vase plant remote microwave toaster oven
mouse keyboard sofa monitor tv flower refrigerator house bag umbrella book backpack phone
shirt tie suitcase box sink bed toilet cat dog horse bird cow sheep elephant bear zebra
giraffe ball racket skateboard skis snowboard surfboard kite pizza cake apple banana
sandwich orange carrot donut
"""
CLASSES = tuple(_CLASSES.split())
"""The classes, in the order of their indices 0 to 72."""
