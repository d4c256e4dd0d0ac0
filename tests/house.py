"""Draw the house as it is imported: `python -m tests.house` prints the drawing of the docs."""

from pathlib import Path

from tests.test_contract import LAYER_OF, LAYERS, imports_of

ROOT = Path(__file__).parents[1]


def drawing() -> str:
    """A Mermaid graph of what imports what; arrows that others imply are left out."""
    uses: dict[str, set[str]] = {name: set() for name in LAYER_OF if name != "__main__"}
    for module, imported in imports_of(ROOT, typing=False).items():
        name = module.partition(".")[0]
        if name in uses:
            uses[name] |= {other.partition(".")[0] for other in imported} & set(uses) - {name}
    lines = ["graph TD"]
    for layer, names in LAYERS.items():
        shown = sorted(names & set(uses))
        if layer == "ground":
            lines.append(f'    ground["ground: {", ".join(shown)}"]')
            continue
        lines += [f"    subgraph {layer}", *(f"        {name}" for name in shown), "    end"]
    above = {name: others - LAYERS["ground"] for name, others in uses.items()}
    for name in sorted(set(uses) - LAYERS["ground"]):
        implied = {far for near in above[name] for far in _reached(near, above)}
        direct = sorted(above[name] - implied) or ["ground"]
        lines += [f"    {name} --> {other}" for other in direct]
    return "\n".join(lines)


def _reached(name: str, uses: dict[str, set[str]]) -> set[str]:
    return uses[name].union(*(_reached(other, uses) for other in uses[name]))


if __name__ == "__main__":
    print(drawing())
