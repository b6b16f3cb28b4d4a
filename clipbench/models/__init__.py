"""The models under test. One door to every encoder: from a name's spec to a loaded model; imports torch when called."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipbench.models.device import Resources
    from clipbench.models.encoder import Encoder
    from clipbench.models.zoo import ModelSpec


def load_encoder(spec: "ModelSpec", resources: "Resources", offline: bool) -> "Encoder":
    """Return the encoder of a spec, loaded on the device and in the precision of the session. Imports torch.

    Raises: WeightsUnavailableError when weights cannot be had; CheckpointError when they are corrupt or foreign;
    UnknownModelError when a factory gives no encoder.
    """
    if spec.source == "factory":
        from clipbench.models.encoder import as_encoder, encoder_of_factory

        made = encoder_of_factory(spec.location, spec.arguments)
        return as_encoder(made, spec.name, resources.device, resources.precision)
    if spec.source == "embeddings":
        from clipbench.models.embeddings import load_embeddings

        return load_embeddings(Path(spec.location), spec.name, spec.pretrained, resources.precision)
    if spec.source == "onnx":
        from clipbench.models.onnx import load_onnx

        return load_onnx(Path(spec.location), spec.name, spec.pretrained, resources.device)
    if spec.source == "hf":
        from clipbench.models.hf import load_hf

        return load_hf(spec, resources.device, resources.precision, offline)
    from clipbench.models.open_clip import HUB_FILES, load_directory, load_open_clip

    folder = Path(spec.location)
    if spec.source == "lite":
        from clipbench.models.lite import lite_directory

        folder = lite_directory()
    elif spec.source == "hf-hub":
        from clipbench.models.weights import fetch_repository

        folder = fetch_repository(spec.location, offline, HUB_FILES)
    elif spec.source != "local-dir":
        return load_open_clip(spec, resources.device, resources.precision, offline)
    return load_directory(folder, spec, resources.device, resources.precision)


def wrap_encoder(encoder: Any, resources: "Resources") -> "Encoder":
    """Return an object with encode_images and encode_texts, or open_clip's triple, as an encoder of the suite.

    It is called as its `name` says, else after its class.
    """
    from clipbench.models.encoder import as_encoder

    if isinstance(encoder, tuple) and len(encoder) == 3 and callable(getattr(encoder[0], "encode_image", None)):
        from clipbench.models.wrap import wrap

        encoder = wrap(*encoder)
    name = getattr(encoder, "name", "")
    called = name if isinstance(name, str) and name else type(encoder).__name__
    return as_encoder(encoder, called, resources.device, resources.precision)
