"""open_clip's triple as an encoder: (model, preprocess, tokenizer), so that a training loop or a notebook needs no class."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clipbench.errors import UsageError

if TYPE_CHECKING:
    import torch
    from PIL import Image

_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_HOW = "expected (model, preprocess, tokenizer): open_clip.create_model_and_transforms' model and last transform, and get_tokenizer(NAME)"


class WrappedModel:
    """An encoder of a model with `encode_image` and `encode_text`, its transform and its tokenizer, where they are and as they are.

    While it encodes, the model is in eval mode without gradients; afterwards each of its modules is in the mode it was in.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Callable[["Image.Image"], Any],
        tokenizer: Callable[[Sequence[str]], Any],
        name: str = "",
    ) -> None:
        for method in ("encode_image", "encode_text", "state_dict", "modules"):
            if not callable(getattr(model, method, None)):
                inner = "; give what it wraps: model.module" if hasattr(model, "module") else ""
                raise UsageError(f"wrap: {type(model).__name__} has no method {method}{inner}; {_HOW}")
        if not callable(preprocess):
            raise UsageError(f"wrap: preprocess is {type(preprocess).__name__}, which cannot be called; {_HOW}")
        self._model, self._preprocess, self._tokenizer = model, preprocess, tokenizer
        self.name = name or type(model).__name__
        self._check_tokenizer()
        from clipbench.models.checkpoint import weights_sha256

        tensors = {key: tensor.detach() for key, tensor in model.state_dict().items()}
        parameter = next(model.parameters())
        self.identity = {
            "pretrained": "factory",
            "weights_sha256": weights_sha256(tensors),
            "device": str(parameter.device),
            "precision": _PRECISIONS.get(str(parameter.dtype).removeprefix("torch."), "fp32"),
        }
        self.preprocessing = (
            " ".join(repr(preprocess).split())[:1000] if "<" not in repr(preprocess) else "the caller's"
        )
        self.card = {"params": sum(p.numel() for p in model.parameters())}
        scale, bias = (getattr(model, key, None) for key in ("logit_scale", "logit_bias"))
        self.logit_scale = None if scale is None else float(scale.detach().exp())
        self.logit_bias = None if bias is None else float(bias.detach())

    def encode_images(self, images: Sequence["Image.Image"]) -> "torch.Tensor":
        """Return the model's (images, dim) rows, not normalised. Raises: UsageError for a transform that gives no tensor."""
        import torch

        prepared = [self._preprocess(image) for image in images]
        if not all(isinstance(one, torch.Tensor) for one in prepared):
            raise UsageError(
                f"{self.name}: preprocess gives {type(prepared[0]).__name__} for a picture, not a tensor; {_HOW}"
            )
        parameter = next(self._model.parameters())
        with self._evaluating():
            return self._model.encode_image(torch.stack(prepared).to(parameter.device, parameter.dtype))  # type: ignore[no-any-return]  # theirs

    def encode_texts(self, texts: Sequence[str]) -> "torch.Tensor":
        """Return the model's (texts, dim) rows, not normalised."""
        with self._evaluating():
            return self._model.encode_text(self._tokenizer(list(texts)).to(next(self._model.parameters()).device))  # type: ignore[no-any-return]  # theirs

    def _check_tokenizer(self) -> None:
        """Raises: UsageError where the third is no tokenizer: create_model_and_transforms gives two transforms."""
        import torch

        try:
            tokens: Any = self._tokenizer(["a photo"])
        except Exception as error:  # somebody else's callable may raise anything
            raise UsageError(
                f"wrap: the tokenizer fails on ['a photo'] ({type(error).__name__}: {error}); {_HOW}"
            ) from error
        if not isinstance(tokens, torch.Tensor) or tokens.ndim != 2 or tokens.is_floating_point():
            raise UsageError(
                f"wrap: the tokenizer gives {type(tokens).__name__} for ['a photo'], not (texts, tokens) integers; {_HOW}"
            )

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        import torch

        modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            for module, mode in modes:
                module.training = mode


def wrap(
    model: Any, preprocess: Callable[["Image.Image"], Any], tokenizer: Callable[[Sequence[str]], Any], name: str = ""
) -> WrappedModel:
    """Return open_clip's triple as an encoder for `evaluate`, a factory, or a regression test; `name`: what results call it.

    Raises: UsageError where one of the three is not what it stands for.
    """
    return WrappedModel(model, preprocess, tokenizer, name)
