"""`hf:ORG/REPO` or `hf:FOLDER`: CLIP, SigLIP and SigLIP2 through transformers, each with the text recipe that it was trained with.

SigLIP was trained on lower case, padded to its full length, with no attention mask: padded otherwise it loses points without a word.
CLIP reads its row out at the end of the text, so that padding is no matter. Weights are safetensors, and code of a repository is never
run; what is not one of the three is refused.

Source: huggingface/transformers docs/source/en/model_doc/siglip.md and siglip2.md ("padding='max_length'"); google-research/big_vision
configs/proj/image_text/README_siglip2.md (lower case, 64 tokens).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from clipbench.data.dataset import file_sha256
from clipbench.errors import CheckpointError, ClipbenchError, DataError, WeightsUnavailableError
from clipbench.models.checkpoint import tensor_hashes, weights_sha256
from clipbench.models.encoder import Encoder, Ready, Rows, checked_rows
from clipbench.models.grammar import EXPECTED, is_repository
from clipbench.models.onnx import ACTIVATIONS, FINGERPRINT_TEXTS, ImageSteps
from clipbench.models.weights import fetch_repository
from clipbench.models.zoo import ModelSpec
from clipbench.paths import LARGEST_SETTINGS_BYTES, read_json
from clipbench.types import JsonObject, ModelIdentity

CLASSES: Mapping[str, str] = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
"""Model type, as config.json has it, to transformers' class."""

FILES = ("*.json", "*.txt", "*.model", "model*.safetensors")
"""What of a repository is fetched: no code, no pickles."""

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class HFEncoder(Encoder):
    """A model of transformers with its own image processor and tokenizer, in eval mode, without gradients."""

    def __init__(
        self, model: Any, processor: Any, tokenizer: Any, identity: ModelIdentity, settings: Mapping[str, Any]
    ) -> None:
        """`settings`: max_length and lowercase, where `--model-args` asks for others than the recipe."""
        self.model, self.processor, self.tokenizer, self.identity = (
            model.eval().requires_grad_(False),
            processor,
            tokenizer,
            identity,
        )
        self._is_siglip = model.config.model_type.startswith("siglip")
        text = model.config.text_config
        self._length = int(settings.get("max_length", text.max_position_embeddings))
        self._lowercase = bool(settings.get("lowercase", self._is_siglip))
        self._settings, self._tensors = dict(settings), tensor_hashes(model.state_dict())
        self.preprocessing = _described(processor)
        count = {name: p.numel() for name, p in model.named_parameters()}
        self.card: Mapping[str, int] = MappingProxyType(
            {
                "params": sum(count.values()),
                "params_image": sum(
                    n for name, n in count.items() if name.startswith(("vision_model", "visual_projection"))
                ),
                "params_text": sum(
                    n for name, n in count.items() if name.startswith(("text_model", "text_projection"))
                ),
                "context_length": self._length,
                "vocab_size": int(text.vocab_size),
            }
        )

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return what the image processor makes of pictures, on the CPU."""
        return self._prepared(images)["pixel_values"]

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Return (texts, tokens) int64, padded to the full length and cut at it."""
        return self._tokenized(texts)["input_ids"]

    def _prepared(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        return dict(self.processor(images=list(images), return_tensors="pt"))

    def _tokenized(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        given = [text.lower() for text in texts] if self._lowercase else list(texts)
        made = self.tokenizer(
            given, padding="max_length", max_length=self._length, truncation=True, return_tensors="pt"
        )
        return {name: made[name] for name in ("input_ids", *(() if self._is_siglip else ("attention_mask",)))}

    def _forward(self, call: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        dtype, device = _DTYPES[self.identity.precision], self.identity.device
        given = {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in inputs.items()}
        with torch.inference_mode():
            made = call(**given)
        return made if isinstance(made, torch.Tensor) else made.pooler_output

    def encode_images(self, images: Sequence[Image.Image]) -> Rows:
        raw = self._forward(self.model.get_image_features, self._prepared(images))
        return checked_rows(raw, len(images), f"{self.identity.name}: get_image_features")

    def encode_texts(self, texts: Sequence[str]) -> Rows:
        raw = self._forward(self.model.get_text_features, self._tokenized(texts))
        return checked_rows(raw, len(texts), f"{self.identity.name}: get_text_features")

    def ready_images(self, images: Sequence[Image.Image]) -> Ready:
        return Ready(
            partial(self._forward, self.model.get_image_features, self._prepared(images)), self.identity.device
        )

    def ready_texts(self, texts: Sequence[str]) -> Ready:
        return Ready(partial(self._forward, self.model.get_text_features, self._tokenized(texts)), self.identity.device)

    def asked(self) -> JsonObject:
        return {"tokenizer": self._settings} if self._settings else {}

    def observed(self) -> JsonObject:
        tokens = self.tokens(FINGERPRINT_TEXTS).cpu().numpy().astype("<i8")
        found: JsonObject = {
            "weights": self.identity.weights_sha256,
            "tensors": dict(self._tensors),
            "activation": self.identity.activation,
            "preprocessing": self.preprocessing,
            "tokenizer": hashlib.sha256(tokens.tobytes()).hexdigest(),
            "device": self.identity.device,
        }
        found |= {"logit_scale": float(self.model.logit_scale.exp())}
        bias = getattr(self.model, "logit_bias", None)
        return found | ({} if bias is None else {"logit_bias": float(bias)})

    def count_truncated(self, texts: Sequence[str]) -> int:
        rows = self.tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        return sum(len(row) > self._length for row in rows)

    def close(self) -> None:
        self.model = torch.nn.Identity()


def _described(processor: Any) -> str:
    """One line, the same as an export of the model to ONNX has."""
    settings = json.loads(json.dumps(processor.to_dict(), default=str))
    try:
        return str(ImageSteps(settings, ""))
    except DataError:  # patches of any number, say
        return " ".join(f"{key}={value}" for key, value in sorted(settings.items()) if key[0] != "_")


def load_hf(spec: ModelSpec, device: str, precision: str, offline: bool) -> HFEncoder:
    """Return the encoder of a repository, fetched or from the cache, or of a folder as `save_pretrained` writes it.

    Raises: WeightsUnavailableError when transformers or the files cannot be had; CheckpointError for another kind of model, and for
    files that are missing, damaged, or want code of their own.
    """
    try:
        import transformers
    except ImportError as error:
        raise WeightsUnavailableError(
            f'{spec.name}: transformers is not installed; pip install "clipbench[hf]"'
        ) from error
    is_hub = is_repository(spec.location) and not Path(spec.location).is_dir()
    folder = fetch_repository(spec.location, offline, FILES) if is_hub else Path(spec.location)
    kind = _model_type(folder)
    how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    library: Any = transformers
    try:
        made = getattr(library, CLASSES[kind])
        model, loading = made.from_pretrained(
            folder, use_safetensors=True, dtype="auto", output_loading_info=True, **how
        )
        processor = library.AutoImageProcessor.from_pretrained(folder, **how)
        tokenizer = library.AutoTokenizer.from_pretrained(folder, **how)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"transformers cannot load {folder}: {reason}; expected {EXPECTED['hf']}") from error
    if absent := sorted(map(str, (*loading["missing_keys"], *loading["mismatched_keys"]))):
        raise CheckpointError(
            f"{folder} lacks {len(absent)} of the model's tensors, such as {absent[0]}, which transformers would fill with random numbers"
        )
    file = folder / "model.safetensors"
    identity = ModelIdentity(
        name=spec.name,
        pretrained=spec.pretrained,
        weights_sha256=weights_sha256(model.state_dict()),
        file_sha256=file_sha256(file) if file.is_file() else "",
        activation=ACTIVATIONS.get(str(model.config.text_config.hidden_act), ""),
        precision=precision,
        device=device,
    )
    return HFEncoder(model.to(device, _DTYPES[precision]), processor, tokenizer, identity, spec.arguments)


def _model_type(folder: Path) -> str:
    """What config.json says. Raises: CheckpointError for a kind that is not known here, with those that are."""
    try:
        settings = read_json(folder / "config.json", LARGEST_SETTINGS_BYTES)
    except ClipbenchError as error:
        raise CheckpointError(f"{error}; expected {EXPECTED['hf']}") from error
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise CheckpointError(
            f"{folder / 'config.json'} has the model_type {kind!r}; expected {known}, or your own module:factory"
        )
    return str(kind)
