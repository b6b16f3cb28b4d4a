"""What is compared on: how much of everything, the model, and COCO-like folders made when they are first asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clipbench.data.coco import coco_retrieval
from clipbench.data.dataset import Item
from clipbench.errors import UsageError
from clipbench.models import load_encoder
from clipbench.models.open_clip import OpenClipEncoder
from clipbench.models.zoo import resolve
from clipbench.peers.coco_like import write_coco_like
from clipbench.peers.flops import TowerFlops, tower_flops
from clipbench.settings import Settings

MODEL, PRETRAINED = "ViT-B/32", "random:0"
STEPS = (1, 2, 4, 8)
"""Cost and memory are looked at on so many times the items."""


@dataclass(frozen=True)
class Sizes:
    """How much: `images` of the timed work, each with five captions, `steps_images` where size itself is looked at (times STEPS).

    Rounds: `slow_rounds` of what takes minutes, `close_rounds` of what is held to a few per cent, `rounds` of all else.
    """

    images: int = 64
    classes: int = 80
    templates: int = 80
    rounds: int = 7
    slow_rounds: int = 3
    close_rounds: int = 15
    steps_images: int = 16
    steps_rounds: int = 3
    memory_images: int = 64
    memory_rounds: int = 3
    cached_images: int = 500
    cached_rounds: int = 3
    lite_runs: int = 3


QUICK = Sizes(8, 3, 4, 2, 2, 2, 2, 1, 4, 2, 8, 2, 1)
"""Small enough to try the machinery; its ratios say nothing."""


class Bench:
    """The one encoder of all comparisons, loaded when it is first asked for, and the folders of images."""

    def __init__(self, settings: Settings, sizes: Sizes, folder: Path, say: Callable[[str], None]) -> None:
        self.settings, self.sizes, self.folder, self.say = settings, sizes, folder, say

    @cached_property
    def encoder(self) -> OpenClipEncoder:
        """The model's encoder. Raises: UsageError for one that is not open_clip's: the peers need what is inside."""
        encoder = load_encoder(resolve([MODEL], PRETRAINED)[0], self.settings)
        if not isinstance(encoder, OpenClipEncoder):
            raise UsageError(f"{MODEL}: expected a model that open_clip makes")
        return encoder

    @cached_property
    def flops(self) -> TowerFlops:
        """What the encoder's towers cost."""
        return tower_flops(self.encoder)

    def root(self, images: int) -> Path:
        """Return a folder with that many images in COCO's layout, written once."""
        root = self.folder / f"coco_{images}"
        return root if root.is_dir() else write_coco_like(root, images)

    def items(self, images: int) -> Sequence[Item]:
        """Return that many images with their captions."""
        return coco_retrieval(self.root(images)).items
