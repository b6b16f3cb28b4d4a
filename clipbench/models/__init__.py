"""The models under test. One door to every encoder: from a name's spec to a loaded model; imports torch when called."""

from typing import TYPE_CHECKING, Any

from clipbench.settings import Settings

if TYPE_CHECKING:
    from clipbench.models.encoder import Encoder
    from clipbench.models.zoo import ModelSpec


def load_encoder(spec: "ModelSpec", settings: Settings) -> "Encoder":
    """Return the encoder of a spec, loaded on `settings.device` in `settings.precision`. Imports torch.

    Raises: WeightsUnavailableError when weights cannot be had; CheckpointError when they are corrupt or foreign;
    UnknownModelError when a factory gives no encoder.
    """
    if spec.source == "factory":
        from clipbench.models.encoder import CustomEncoder, encoder_of_factory

        return CustomEncoder(encoder_of_factory(spec.name), spec.name, settings.device, settings.precision)
    from clipbench.models.open_clip import load_directory, load_open_clip

    if spec.source == "lite":
        from clipbench.models.lite import lite_directory

        return load_directory(lite_directory(), spec.name, settings.device, settings.precision)
    return load_open_clip(spec, settings.device, settings.precision, settings.offline)


def wrap_encoder(encoder: Any, settings: Settings) -> "Encoder":
    """Return an object with encode_images and encode_texts as an encoder of the suite, named after its class."""
    from clipbench.models.encoder import CustomEncoder

    return CustomEncoder(encoder, type(encoder).__name__, settings.device, settings.precision)
