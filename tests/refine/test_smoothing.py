"""One step of smoothing: its definition, patch by patch."""

import torch
import torch.nn.functional as F

from talk2dino.refine.refinement import Smoothing


def literal(window):
    unit = F.normalize(window.double(), dim=1)
    similarity = unit @ unit.T
    matrix = 10 * (similarity - similarity.mean())
    smoothed = []
    for place, row in enumerate(matrix):
        weights = torch.stack(
            [v.exp() if v >= 0 or i == place else v.new_zeros(()) for i, v in enumerate(row)]
        )
        smoothed.append((weights[:, None] * window).sum(dim=0) / weights.sum())
    return torch.stack(smoothed).float()


def test_every_patch_is_the_mean_of_those_that_resemble_it():
    features = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    found = Smoothing().features(features)
    torch.testing.assert_close(found, torch.stack([literal(window) for window in features]))
    torch.testing.assert_close(Smoothing().features(3 * features), 3 * found)


def test_a_patch_counts_for_itself_even_where_all_are_alike():
    alike = torch.ones(1, 4, 3)
    torch.testing.assert_close(Smoothing().features(alike), alike)
