"""The trained map between CLIP's text space and DINO's patch space, and its variants."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from talk2dino.backbones.checkpoints import load_strict, looks_like, state_shapes
from talk2dino.backbones.seeded import parse_seeded, seeded_state
from talk2dino.config import build, check_at_least, check_name, first_few
from talk2dino.devices import float32_by_default, keep_float32
from talk2dino.methods.talk2dino.alignment import align, strategies
from talk2dino.methods.talk2dino.hub.layout import read_parts
from talk2dino.textfiles import read_sections

SECTIONS = ("model", "train", "features")
"""Of a recipe, a file of `configs/`; the first one is required."""
NORM_EPS = 1e-12
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}
"""`act` of a recipe -> what lies between the linear layers."""
HEAD_WEIGHTINGS = ("static", "conditioned")
"""`weight_attn_heads` of a recipe: weights that are learned as they are, or from the CLS token."""
M = TypeVar("M", bound="Projection")


@dataclass(frozen=True)
class ProjectionConfig:
    """The `model:` section: the trained map between the two spaces (paper section 3.2)."""

    act: str | None = "tanh"
    """Activation between the linear layers, one of `ACTIVATIONS`, or null for none."""
    hidden_layer: bool | int = False
    """Number of hidden layers; true means 1."""
    cosine: bool = True
    """L2-normalise both sides before the scores."""
    dino_embed_dim: int = 1024
    """Width D of the patch embeddings: 768 for ViT-B, 1024 for ViT-L."""
    clip_embed_dim: int = 512
    """Width E of the text embeddings."""
    hidden_embed_dim: int | None = None
    """Width of VisualProjectionLayer's hidden layer; null means clip_embed_dim."""
    num_attn_head: int = 16
    """Number H of attention heads of the backbone: 12 for ViT-B, 16 for ViT-L."""
    weight_attn_heads: str | None = None
    """Learn how much each head counts: null, or one of `HEAD_WEIGHTINGS`."""
    alignment_strategy: str = "max_score"
    """How per-head image embeddings meet a text; see talk2dino.methods.talk2dino.alignment."""
    alpha: float = 0.6
    """Share of the score mass that a strategy keeps, if it takes one: nucleus-sampling."""
    routing_temperature: float = 0.1
    """Of the softmax over heads, if the strategy takes one: soft_routing."""
    keep_cls: bool = False
    """With token-level text, keep position 0."""
    keep_end_seq: bool = False
    """With token-level text, keep the end-of-text position."""
    starting_checkpoint: str | None = None
    """Weights to start the training from."""
    model_class: str = "ProjectionLayer"
    """The trained class, one of `MODEL_CLASSES`."""

    def __post_init__(self) -> None:
        if self.act is not None:
            check_name("activation (act)", self.act, ACTIVATIONS)
        if self.weight_attn_heads is not None:
            check_name("weight_attn_heads", self.weight_attn_heads, HEAD_WEIGHTINGS)
        check_name("alignment_strategy", self.alignment_strategy, strategies())
        check_name("model_class", self.model_class, MODEL_CLASSES)
        sizes = ("dino_embed_dim", "clip_embed_dim", "hidden_embed_dim", "num_attn_head")
        check_at_least(1, **{n: size for n in sizes if (size := getattr(self, n)) is not None})
        check_at_least(0, hidden_layer=int(self.hidden_layer))
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {self.alpha}")
        if not self.routing_temperature > 0:
            raise ValueError(
                f"routing_temperature must be positive, got {self.routing_temperature}"
            )
        if self.alignment_strategy == "soft_routing" and not self.cosine:
            raise ValueError("alignment_strategy soft_routing compares unit vectors: cosine: true")
        if self.weight_attn_heads and self.model_class != "ProjectionLayer":
            raise ValueError(
                f"weight_attn_heads works with ProjectionLayer, not {self.model_class}"
            )


class Projection(nn.Module):
    """What the trainable classes share: the scores of a batch of image-caption pairs."""

    _apply = keep_float32

    def __init__(self, config: ProjectionConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_config(cls: type[M], config: str | Path | Mapping[str, Any] | ProjectionConfig) -> M:
        """Make an untrained model.

        Args:
            config: a file of `configs/`, its `model:` section as a dict, or the dataclass.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: an unknown key or value.
        """
        return cls(_read_config(config))

    def project_clip_txt(self, text: Tensor, text_argmax: Tensor | None = None) -> Tensor:
        """Text features of CLIP (..., E) to the space where they meet images."""
        return text

    def project_visual(self, visual: Tensor) -> Tensor:
        """Image features of DINO (..., D) to the space where they meet texts."""
        return visual

    def forward(
        self,
        visual: Tensor,
        text: Tensor,
        *,
        generator: torch.Generator | None = None,
        total: int | None = None,
        **extras: Any,
    ) -> Tensor:
        """Scores of all pairs of a batch, or of all processes' batches.

        Args:
            visual, text, extras: as in `embed`.
            generator: randomness of `sampled_attn_map`, seeded alike in every process.
            total: pairs of all processes, if there are several; see `gather_rows`.

        Returns:
            (B, B), diagonal = true pairs; orientation as in `alignment.align`.
        """
        visual, text = self.embed(visual, text, **extras)
        token_mask = None
        if text.ndim == 3:
            mask = extras.get("text_input_mask")
            if mask is None:
                mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
            kept = (self.config.keep_cls, self.config.keep_end_seq)
            token_mask = counted_tokens(mask.bool(), *kept, extras.get("text_argmax"))
        strategy, temperature = self.config.alignment_strategy, self.config.routing_temperature
        how = (strategy, self.config.alpha, token_mask, generator, temperature, total)
        return align(visual, text, *how)

    def embed(
        self,
        visual: Tensor,
        text: Tensor,
        *,
        self_attn_maps: Tensor | None = None,
        cls: Tensor | None = None,
        text_input_mask: Tensor | None = None,
        text_argmax: Tensor | None = None,
        visual_is_unit: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Both sides in their common space, L2-normalised if `cosine`.

        Args:
            visual: (B, D), (B, H, D), or (B, P, D) patches when heads are weighted.
            text: (B, E) captions, or (B, T, E) their tokens.
            self_attn_maps: (B, H, P) attention logits, when heads are weighted.
            cls: (B, D) CLS tokens, when heads are weighted conditionally.
            text_input_mask: (B, T) bool, the tokens that exist; only `forward` needs it.
            text_argmax: (B,) position of each end-of-text token.
            visual_is_unit: the visual vectors have length 1 already; see `images_stay`.
        """
        if self.config.weight_attn_heads:
            assert isinstance(self, ProjectionLayer)
            visual = self._pool_weighted_heads(visual, self_attn_maps, cls)
        visual = self.project_visual(visual)
        text = self.project_clip_txt(text, text_argmax)
        if self.config.cosine:
            visual = visual if visual_is_unit else unit(visual)
            text = unit(text)
        return visual, text


def end_positions(mask: Tensor) -> Tensor:
    """(B,) last true position of each row of a (B, T) mask.

    The mask is `token id > 0`, and the word "!" has id 0: counting the true values would miss.
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    return (mask * positions).argmax(dim=1)


def counted_tokens(
    mask: Tensor, keep_cls: bool, keep_end_seq: bool, end: Tensor | None = None
) -> Tensor:
    """(B, T) bool: of a caption's own positions, without the first and the end of text or with."""
    counted = mask.clone()
    if not keep_end_seq:
        counted.scatter_(1, (end_positions(mask) if end is None else end)[:, None], False)
    if not keep_cls:
        counted[:, 0] = False
    return counted


def average_tokens(
    tokens: Tensor, mask: Tensor, keep_cls: bool = False, keep_end_seq: bool = False
) -> Tensor:
    """Mean of a caption's token vectors, by default without the first and end-of-text positions.

    Args:
        tokens: (B, T, E).
        mask: (B, T) bool, true for the caption's own positions.
        keep_cls: count position 0 too.
        keep_end_seq: count the end-of-text position too.

    Returns:
        (B, E); zeros for a caption with nothing between the two.
    """
    counted = counted_tokens(mask, keep_cls, keep_end_seq)
    number = counted.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.einsum("bte,bt->be", tokens, counted.to(tokens.dtype)) / number


class ProjectionLayer(Projection):
    """Talk2DINO's map: CLIP text features into DINO's patch space (paper section 3.2).

    Linear(E to D), then per hidden layer an activation and Linear(D to D).
    """

    def __init__(self, config: ProjectionConfig) -> None:
        super().__init__(config)
        dim = config.dino_embed_dim
        self.linear_layer = nn.Linear(config.clip_embed_dim, dim)
        self.hidden_layers = nn.ModuleList(
            nn.Linear(dim, dim) for _ in range(int(config.hidden_layer))
        )
        self.act = _activation(config.act)
        if config.weight_attn_heads == "static":
            self.attn_weights = nn.Parameter(torch.rand(config.num_attn_head))
        elif config.weight_attn_heads == "conditioned":
            self.weight_layer1 = nn.Linear(dim, dim)
            self.weight_layer2 = nn.Linear(dim, config.num_attn_head)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As in `nn.Module`; also reads older files, which say `linear_layer2`."""
        return super().load_state_dict(self.rename_keys(state_dict), strict, assign)

    def rename_keys(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """`state` with the first hidden layer under its present name."""
        if not self.hidden_layers:
            return dict(state)
        old, new = "linear_layer2.", "hidden_layers.0."
        return {
            new + name[len(old) :] if name.startswith(old) else name: value
            for name, value in state.items()
        }

    def project_clip_txt(self, text: Tensor, text_argmax: Tensor | None = None) -> Tensor:
        """CLIP text features (..., E), not normalised, to DINO's space (..., D), in float32."""
        return _mlp(text.float(), self.linear_layer, self.hidden_layers, self.act)

    def _pool_weighted_heads(
        self, patches: Tensor, maps: Tensor | None, cls: Tensor | None
    ) -> Tensor:
        """(B, P, D) patches and (B, H, P) logits to (B, D), with learned weights of the heads."""
        if maps is None:
            raise ValueError("weight_attn_heads needs self_attn_maps besides patch_tokens")
        if self.config.weight_attn_heads == "static":
            weights = self.attn_weights.softmax(dim=-1).expand(len(maps), -1)
        elif cls is None:
            raise ValueError("weight_attn_heads: conditioned needs the CLS token (dino_features)")
        else:
            hidden = self.act(self.weight_layer1(cls))
            weights = self.weight_layer2(hidden).softmax(dim=-1)  # (B, H)
        average = (weights.unsqueeze(-1) * maps).mean(dim=1).softmax(dim=-1)  # (B, P)
        return (average.unsqueeze(-1) * patches).mean(dim=1)


class VisualProjectionLayer(Projection):
    """The map on the image side instead: DINO features into CLIP's space; text stays as it is."""

    def __init__(self, config: ProjectionConfig) -> None:
        super().__init__(config)
        text_dim = config.clip_embed_dim
        hidden_dim = config.hidden_embed_dim or text_dim
        self.linear_layer = nn.Linear(config.dino_embed_dim, hidden_dim)
        self.linear_layer2 = nn.Linear(hidden_dim, text_dim)
        self.act = _activation(config.act)

    def project_visual(self, visual: Tensor) -> Tensor:
        """DINO features (..., D) to CLIP's space (..., E), in float32."""
        return self.linear_layer2(self.act(self.linear_layer(visual.float())))


class DoubleMLP(ProjectionLayer):
    """A map on both sides: text as in ProjectionLayer, and an MLP of width D on the images."""

    def __init__(self, config: ProjectionConfig) -> None:
        super().__init__(config)
        dim = config.dino_embed_dim
        self.visual_linear = nn.Linear(dim, dim)
        self.visual_hidden_layers = nn.ModuleList(
            nn.Linear(dim, dim) for _ in range(int(config.hidden_layer))
        )

    def project_visual(self, visual: Tensor) -> Tensor:
        """DINO features (..., D) to the common space (..., D), in float32."""
        return _mlp(visual.float(), self.visual_linear, self.visual_hidden_layers, self.act)


class CLIPLastLayer(ProjectionLayer):
    """ProjectionLayer on top of CLIP's last text block, final norm and projection, all trained.

    Its text input is `clip_second_last_out` (B, 77, E) with `text_argmax`. The block starts
    untrained; `copy_from` takes CLIP's own.
    """

    def __init__(self, config: ProjectionConfig) -> None:
        # Only this class needs it: 5 s to import and 250 MB.
        from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock

        super().__init__(config)
        width = config.clip_embed_dim  # equal to the tower's width in every OpenAI model
        self.last_block = ResidualAttentionBlock(width, width // 64, act_layer=QuickGELU)
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, width) * width**-0.5)

    def copy_from(self, text_tower: Any) -> None:
        """Start from the last block, norm and projection of a CLIP text tower (open_clip's).

        Raises:
            ValueError: the tower has another activation.
        """
        block = text_tower.transformer.resblocks[-1]
        if type(block.mlp.gelu) is not type(self.last_block.mlp.gelu):
            raise ValueError("CLIPLastLayer has QuickGELU; this text encoder has GELU")
        self.last_block.load_state_dict(block.state_dict())
        self.ln_final.load_state_dict(text_tower.ln_final.state_dict())
        with torch.no_grad():
            self.text_projection.copy_(text_tower.text_projection)

    def project_clip_txt(self, text: Tensor, text_argmax: Tensor | None = None) -> Tensor:
        """(B, 77, E) second-to-last outputs to (B, D); (..., E) final text features as they are.

        Raises:
            ValueError: second-to-last outputs without `text_argmax`.
        """
        if text.ndim < 3:
            return super().project_clip_txt(text)
        if text_argmax is None:
            raise ValueError("CLIPLastLayer needs text_argmax besides clip_second_last_out")
        length = text.shape[1]
        causal = text.new_full((length, length), -torch.inf, dtype=torch.float32).triu(1)
        x = self.ln_final(self.last_block(text.float(), attn_mask=causal))
        end = x[torch.arange(len(x), device=x.device), text_argmax]  # (B, E)
        return super().project_clip_txt(end @ self.text_projection)


MODEL_CLASSES: dict[str, type[Projection]] = {
    cls.__name__: cls for cls in (ProjectionLayer, VisualProjectionLayer, DoubleMLP, CLIPLastLayer)
}


@float32_by_default()
def build_projection(config: ProjectionConfig) -> Projection:
    """An untrained model of the class that the configuration names."""
    return MODEL_CLASSES[check_name("model_class", config.model_class, MODEL_CLASSES)](config)


def load_projection(
    config: ProjectionConfig | str | Path,
    weights: str | Path,
    device: str | torch.device = "cpu",
) -> Projection:
    """A trained model, in evaluation mode.

    Args:
        config: its configuration, or a file of `configs/`.
        weights: a file (`.pth` or safetensors; older files say `linear_layer2` for the first
            hidden layer), alone or of a whole model, or `seeded:<n>`.
        device: where to put it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: keys or shapes that do not fit, all named.
    """
    config = _read_config(config)
    seed, model = parse_seeded(str(weights)), build_projection(config)
    if seed is not None:
        state = seeded_state(seed, state_shapes(model))
    else:
        state = read_parts(weights).projection
    if isinstance(model, ProjectionLayer):
        state = model.rename_keys(state)
    load_strict(model, state, weights)
    return model.eval().to(device)


def identify_projection(state: Mapping[str, Tensor], source: str) -> ProjectionConfig:
    """The architecture of a ProjectionLayer, read from its tensors.

    Raises:
        ValueError: the state dict of another class, or of another model; says which it looks like.
    """
    first = state.get("linear_layer.weight")
    if first is None and (kind := looks_like(state)):
        raise ValueError(f"{source} is no Talk2DINO model or projection: it looks like {kind}.")
    if first is None or first.ndim != 2 or any("visual" in name for name in state):
        raise ValueError(
            f"{source} holds another projection than ProjectionLayer "
            f"({first_few(sorted(state), 6)}). Say which with config=, a recipe of configs/."
        )
    layers = {name.split(".")[1] for name in state if name.startswith("hidden_layers.")}
    hidden = len(layers) or int("linear_layer2.weight" in state)
    return ProjectionConfig(
        hidden_layer=hidden,
        dino_embed_dim=first.shape[0],
        clip_embed_dim=first.shape[1],
        num_attn_head=max(first.shape[0] // 64, 1),
    )


def images_stay(config: ProjectionConfig) -> bool:
    """Whether a model does no more to image features than give them length 1.

    Then that can be done once, before training, instead of in every step.
    """
    stays = MODEL_CLASSES[config.model_class].project_visual is Projection.project_visual
    return config.cosine and config.weight_attn_heads is None and stays


def unit(vectors: Tensor) -> Tensor:
    """(..., D) scaled to length 1; zeros stay zeros."""
    return F.normalize(vectors, dim=-1, eps=NORM_EPS)


def _read_config(config: ProjectionConfig | Mapping[str, Any] | str | Path) -> ProjectionConfig:
    """A configuration as it is, or the `model:` section of a file of `configs/`."""
    if isinstance(config, ProjectionConfig):
        return config
    if isinstance(config, Mapping):
        return build(ProjectionConfig, config, "model configuration")
    section = read_sections(config, SECTIONS, required="model")["model"]
    return build(ProjectionConfig, section, Path(config).name)


def _activation(name: str | None) -> nn.Module:
    return ACTIVATIONS[name]() if name else nn.Identity()


def _mlp(x: Tensor, first: nn.Linear, hidden: nn.ModuleList, act: nn.Module) -> Tensor:
    x = first(x)
    for layer in hidden:
        x = layer(act(x))
    return x
