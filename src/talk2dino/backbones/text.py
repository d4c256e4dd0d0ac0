"""Text encoders: CLIP through open_clip, BERT through transformers, and the toy encoder."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import _build_text_tower
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from talk2dino.backbones.checkpoints import (
    FrozenModel,
    WithoutInitialisation,
    check_layout,
    load_strict,
    read_state_dict,
    state_of,
    state_shapes,
)
from talk2dino.backbones.seeded import (
    PRETRAINED,
    check_weights,
    default_weights,
    parse_seeded,
    require_transformers,
    transformers_loading,
)
from talk2dino.config import as_texts, check_name, reason
from talk2dino.devices import float32_by_default

TOY = "toy"
TOYS: dict[str, dict[str, int]] = {TOY: {}, "toy14": {"patch_size": 14}, "toy-gelu": {"layers": 4}}
"""Name -> what its image tower has beside a small one's shape; the text towers are equal."""
CLIP_MODELS = {
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
    "ViT-H/14": "ViT-H-14-quickgelu",
}
"""OpenAI's model name -> open_clip's name for the same architecture (QuickGELU)."""
GELU = "-gelu"
"""Behind a name of `CLIP_MODELS`: with the activation of most of open_clip's own trainings."""
PUBLISHED = {
    **{n: (model, "openai") for n, model in CLIP_MODELS.items() if n != "ViT-H/14"},
    "ViT-B/16-gelu": ("ViT-B-16", "laion2b_s34b_b88k"),
    "ViT-H/14-gelu": ("ViT-H-14", "laion2b_s32b_b79k"),
}
"""Name -> open_clip's name and tag of the weights that are meant by `pretrained`."""
_BESIDE = "open_clip_config.json"
# Text that cleaning (ftfy, HTML's entities) leaves as it is.
_PLAIN = re.compile(r"[ -%'-~\t\n]*")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """What a CLIP text encoder says of a batch of captions."""

    pooled: Tensor
    """(B, E) the projected end-of-text vector; not normalised."""
    mask: Tensor
    """(B, T) bool: the token id is above 0."""
    end_positions: Tensor
    """(B,) position of the end-of-text token."""
    tokens: Tensor | None = None
    """(B, T, E) every position after the final norm and the projection, if asked for."""
    penultimate: Tensor | None = None
    """(B, T, width) output of the second-to-last block, if asked for."""


def tokenize(texts: Sequence[str], length: int) -> Tensor:
    """CLIP's token ids (B, length) int64, padded with zeros: those of open_clip, sooner.

    Args:
        texts: captions.
        length: most ids of a caption; a longer one keeps its end-of-text token, last.
    """
    tokenizer, rows = _vocabulary(), []
    start, end = tokenizer.all_special_ids
    for text in texts:
        plain = _PLAIN.fullmatch(text)
        words = (text.lower() if plain else tokenizer.clean_fn(text)).split()
        ids = [start, *chain.from_iterable(map(_WORD_IDS.__getitem__, words)), end]
        if len(ids) > length:
            ids[length - 1 :] = [end]
        rows.append(ids + [0] * (length - len(ids)))
    return torch.tensor(rows, dtype=torch.int64).view(-1, length)


class _WordIds(dict[str, list[int]]):
    """Of what is between two blanks, which no token reaches over; faster than an `lru_cache`."""

    def __missing__(self, word: str) -> list[int]:
        tokenizer, ids = _vocabulary(), list[int]()
        for part in tokenizer.pat.findall(word):
            characters = "".join(tokenizer.byte_encoder[byte] for byte in part.encode())
            ids += [tokenizer.encoder[piece] for piece in tokenizer.bpe(characters).split(" ")]
        if len(self) >= 1 << 18:  # some tens of MB
            self.clear()
        self[word] = ids
        return ids


_WORD_IDS = _WordIds()


@cache
def _vocabulary() -> open_clip.SimpleTokenizer:
    """Its file takes a sixth of a second to read."""
    return open_clip.SimpleTokenizer()


class _Encoder(FrozenModel):
    """What text encoders have in common: texts to token ids, and these to one vector each."""

    tokenize: Callable[[Sequence[str]], Tensor]
    lengths: Callable[[Tensor], Tensor]
    pooled: Callable[[Tensor], Tensor]
    embed_dim: int

    def trimmed(self, tokens: Tensor) -> Tensor:
        """(B, ..., T) token ids without the positions behind the longest text's end.

        Best done before the ids go to a GPU, which would have to be waited for.
        """
        return tokens[..., : int(self.lengths(tokens).max())]

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (N, E) float32, on the encoder's device, without gradients."""
        texts, device = as_texts(texts), self.device
        vectors = [torch.empty(0, self.embed_dim, device=device)]
        for start in range(0, len(texts), batch_size):
            tokens = self.trimmed(self.tokenize(texts[start : start + batch_size]))
            with torch.no_grad():
                vectors.append(self.pooled(tokens.to(device)).float())
        return torch.cat(vectors)


class TextEncoder(_Encoder):
    """CLIP's text tower, open_clip's with a causal mask, with its tokeniser."""

    def __init__(self, model: TextTransformer, name: str, weights: str) -> None:
        super().__init__(model, name, weights)
        self.embed_dim: int = model.output_dim
        self.context_length: int = model.context_length

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts to (B, 77) int64 token ids; a long text keeps its end-of-text token, last."""
        return tokenize(as_texts(texts), self.context_length)

    def lengths(self, tokens: Tensor) -> Tensor:
        """(B,) how many positions of each text are read: those up to its end-of-text token."""
        return tokens.argmax(dim=-1) + 1

    def pooled(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to the texts' vectors (B, E)."""
        return self(tokens).pooled

    def forward(
        self, tokens: Tensor, dense: bool = False, penultimate: bool = False
    ) -> TextFeatures:
        """Encode token ids.

        Args:
            tokens: (B, T) token ids; T is 77, or less for captions that end before: attention is
                causal, so positions after a caption's end cannot change its vector (see `trimmed`).
            dense: also return every position.
            penultimate: also return the second-to-last block's output.
        """
        model = self.model
        end_positions = tokens.argmax(dim=-1)  # the end-of-text token has the highest id
        length = tokens.shape[1]
        x = model.token_embedding(tokens) + model.positional_embedding[:length]
        assert model.attn_mask is not None
        causal = model.attn_mask[:length, :length]
        *blocks, last = model.transformer.resblocks
        for block in blocks:
            x = block(x, attn_mask=causal)
        second_last = x
        x = model.ln_final(last(x, attn_mask=causal))  # (B, length, width)
        # `gather`, because indexing with a range fixes the batch in an ONNX export.
        places = end_positions[:, None, None].expand(-1, 1, x.shape[-1])
        end = x.gather(1, places).squeeze(1)
        return TextFeatures(
            pooled=end @ model.text_projection,
            mask=tokens > 0,
            end_positions=end_positions,
            tokens=x @ model.text_projection if dense else None,
            penultimate=second_last if penultimate else None,
        )


class BertEncoder(_Encoder):
    """A Hugging Face BERT; its pooler output stands for a caption.

    Args:
        name: a model id or a local folder; loads transformers.

    Raises:
        ImportError: transformers is not installed.
        RuntimeError: the model could not be loaded or downloaded.
    """

    def __init__(self, name: str) -> None:
        require_transformers("BERT")
        from transformers import AutoModel, AutoTokenizer

        with transformers_loading("BERT model", name):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model = AutoModel.from_pretrained(name, add_pooling_layer=True, trust_remote_code=False)
        super().__init__(model, name, PRETRAINED)
        self._tokenizer = tokenizer
        self.embed_dim: int = self.model.config.hidden_size

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts to (B, 2, T) int64: token ids, and 1 where there is one."""
        limit = self.model.config.max_position_embeddings
        found = self._tokenizer(
            as_texts(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        return torch.stack([found["input_ids"], found["attention_mask"]], dim=1)

    def lengths(self, tokens: Tensor) -> Tensor:
        """(B,) how many positions of each text are read."""
        return tokens[:, 1].sum(dim=-1)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Token ids and marks (B, 2, T) to the texts' vectors (B, E)."""
        ids, marks = tokens.unbind(dim=1)
        return self.model(input_ids=ids, attention_mask=marks).pooler_output


def is_bert(name: str) -> bool:
    """Whether a model name means a Hugging Face BERT: its last part contains `bert`."""
    return "bert" in Path(name).name.lower()


def check_text(name: str, weights: str | None = None) -> None:
    """Raise for a text encoder that cannot be loaded; loads nothing."""
    if is_bert(name):
        if weights not in (None, PRETRAINED):
            raise ValueError(f"BERT loads by its name or folder; weights {weights!r} are not used")
        return
    check_clip(name, weights, "text", [TOY, *CLIP_MODELS, "or a BERT model, as bert-base-uncased"])


def check_clip(
    name: str,
    weights: str | None = None,
    kind: str = "CLIP",
    known: Sequence[str] = (*TOYS, *CLIP_MODELS),
) -> None:
    """Raise ValueError or FileNotFoundError for a CLIP that cannot be loaded; loads nothing.

    Args:
        name, weights: as for `load_text`.
        kind: what messages call it.
        known: names, each also with `-gelu` behind it.
    """
    if name.removesuffix(GELU) not in known:
        check_name(f"{kind} model", name, known)
    check_weights(kind, name, weights)
    if (weights or default_weights(name)) == PRETRAINED and name not in PUBLISHED:
        raise ValueError(
            f"{name} has no weights of OpenAI, whose activation is QuickGELU. Give a file."
        )


def load_text(
    name: str = "ViT-B/16", weights: str | None = None, device: str | torch.device = "cpu"
) -> TextEncoder | BertEncoder:
    """Load a frozen text encoder.

    Args:
        name: `toy`, a name of `CLIP_MODELS` (with `-gelu` behind it for weights of that
            activation), or a Hugging Face name or folder containing `bert`.
        weights: `pretrained` (open_clip's download of OpenAI's weights), a file (OpenAI's `.pt`,
            an open_clip state dict, safetensors) or `seeded:<n>`. Default: pretrained, for toy
            seeded:0.
        device: where to put it.

    Raises:
        ValueError: unknown name, or weights that do not fit.
        FileNotFoundError: no such weights file.
        RuntimeError: the weights could not be downloaded.
    """
    check_text(name, weights)
    if is_bert(name):
        return BertEncoder(name).to(device)
    weights = weights or default_weights(name)
    name, state = clip_state(name, weights, {"": create_text_tower(name)})
    return text_from_state(name, state, weights).to(device)


def clip_state(
    name: str, weights: str, towers: Mapping[str, nn.Module]
) -> tuple[str, dict[str, Tensor]]:
    """A CLIP's tensors under OpenAI's names, and its name with the activation of its file.

    Args:
        name: as for `load_text`, but for BERT.
        weights: `pretrained`, a file or `seeded:<n>`.
        towers: what `seeded:<n>` is drawn for: beginning of the names -> tower.
    """
    if weights == PRETRAINED:
        return name, _download(name)
    shapes = {
        beginning + key: shape
        for beginning, tower in towers.items()
        for key, shape in state_shapes(tower).items()
    }
    state = state_of(weights, lambda: shapes)
    if parse_seeded(weights) is None:
        name = _with_activation(name, state, Path(weights))
    return name, state


def text_from_state(name: str, state: dict[str, Tensor], weights: str) -> TextEncoder:
    """A frozen CLIP text encoder from a whole CLIP's state dict or its text part.

    Args:
        name: `toy` or a name of `CLIP_MODELS`, maybe with `-gelu`.
        state: OpenAI's or open_clip's names; any floating type, used as float32.
        weights: where the state dict came from.

    Raises:
        ValueError: weights that do not fit.
    """
    needed = f"OpenAI's .pt or open_clip's file ({_address(name)})"
    check_layout(state, weights, needed)
    model = create_text_tower(name)
    names = {key.removeprefix("text."): key for key in state}  # open_clip's own trainings
    other = ("visual.", "logit_", "input_resolution", "context_length", "vocab_size", "attn_mask")
    own = {short: state[key] for short, key in names.items() if not short.startswith(other)}
    load_strict(model, own, weights)
    return TextEncoder(model, name, weights)


@WithoutInitialisation()
@float32_by_default()
def create_text_tower(name: str) -> TextTransformer:
    """CLIP's text tower without weights; a toy's has 3 blocks of width 512."""
    config = architecture(name)
    return _build_text_tower(config["embed_dim"], config["text_cfg"], not name.endswith(GELU))


def architecture(name: str) -> dict[str, Any]:
    """open_clip's configuration of both towers of a CLIP, but for their activation."""
    if name in TOYS:
        image = {"image_size": 224, "patch_size": 16, "width": 192, "layers": 3, **TOYS[name]}
        text = {"width": 512, "heads": 8, "layers": 3}
        return {"embed_dim": 512, "vision_cfg": image, "text_cfg": text}
    known = check_name("text model", name.removesuffix(GELU), (TOY, *CLIP_MODELS))
    config = open_clip.get_model_config(CLIP_MODELS[known])
    assert config is not None
    return config


def _with_activation(name: str, state: dict[str, Tensor], path: Path) -> str:
    """The model's name with the activation of a file, which its tensors cannot show.

    Raises:
        ValueError: the configuration beside the file cannot be read, or says another one than
            the name.
    """
    beside = path.with_name(_BESIDE)
    if beside.is_file():
        try:
            content = json.loads(beside.read_text(encoding="utf-8"))
            quick = bool(content.get("model_cfg", content).get("quick_gelu", False))
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{beside} is no configuration of open_clip ({error})") from error
        if quick and name.endswith(GELU):
            raise ValueError(f"{beside} says QuickGELU. Name the model {name.removesuffix(GELU)}.")
        return name if quick or name.startswith(TOY) or name.endswith(GELU) else name + GELU
    openai = "input_resolution" in state  # their archives say it; open_clip's files do not
    if name in CLIP_MODELS and not openai:
        logger.warning(
            "%s does not say its activation: QuickGELU is assumed, as in OpenAI's CLIP. If it was "
            "trained with GELU, as most of open_clip's own models, name the model %s.",
            *(path, name + GELU),
        )
    return name


def _address(name: str) -> str:
    """Where a browser finds the weights."""
    default = PUBLISHED.get(name.removesuffix(GELU), PUBLISHED["ViT-B/16"])
    entry = open_clip.get_pretrained_cfg(*PUBLISHED.get(name, default))
    return str(entry.get("url") or f"https://huggingface.co/{entry.get('hf_hub')}")


def _download(name: str) -> dict[str, Tensor]:
    """Published weights, downloaded by open_clip to the Hugging Face cache, but read by us."""
    logger.info("loading the weights of CLIP %s", name)
    try:
        entry = open_clip.get_pretrained_cfg(*PUBLISHED[name])
        path = open_clip.download_pretrained(entry)
    except Exception as error:  # open_clip raises what its network libraries raise
        raise RuntimeError(
            f"could not download the weights of CLIP {name} ({reason(error)}). "
            "Give a local file instead (--text_weights FILE): OpenAI's .pt or open_clip's "
            f"({_address(name)}). Or seeded:0 for a trial run without weights."
        ) from error
    return read_state_dict(path)
