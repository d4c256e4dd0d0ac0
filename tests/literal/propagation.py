"""Label propagation as it is defined: a sum of steps on a dense graph, in float64 and in turn."""

import torch
import torch.nn.functional as F


def propagate(features, scores, neighbours=12, alpha=0.98, steps=700):
    return torch.stack(
        [_window(*one, neighbours, alpha, steps) for one in zip(features, scores, strict=True)]
    )


def _window(features, scores, neighbours, alpha, steps):
    unit = F.normalize(features.double(), dim=1)
    graph = torch.zeros(len(unit), len(unit), dtype=torch.float64)
    for row, values in enumerate((unit @ unit.T).cpu()):
        values[row] = -torch.inf
        nearest = values.sort(descending=True).indices[:neighbours]
        graph[row, nearest] = values[nearest].clamp(min=0) ** 3
        if not graph[row].any():
            graph[row, row] = 1
    graph /= graph.sum(dim=1, keepdim=True)
    term = total = (1 - alpha) * scores.double()
    for _ in range(steps):
        term = alpha * graph.to(term.device) @ term
        total = total + term
    return total.to(scores.dtype)
