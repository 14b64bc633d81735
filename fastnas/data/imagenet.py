"""`imagenet:ROOT`: ImageNet, or any set that is to be treated like it."""

from __future__ import annotations

from dataclasses import replace

from fastnas.data.augmentation import Augmentation
from fastnas.data.folder import FolderSource, open_folder
from fastnas.data.source import Statistics

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Random resized crops of Szegedy et al. 2015 (arXiv 1409.4842); strengths of the jitter as in DARTS and its successors.
AUGMENTATION = Augmentation(crop_padding=0, flip=True, crop_area=(0.08, 1.0), color_jitter=(0.4, 0.4, 0.4, 0.2))
EVALUATED_SHARE = 224 / 256  # of the resized shorter side


def open_imagenet(
    location: str,
    split: str,
    image_size: int | None = None,
    download: bool = False,
    evaluated_share: float | None = None,
    skip_unreadable: bool = False,
    test_share: float | None = None,
) -> FolderSource:
    """Opens ROOT/train/<class>/*.JPEG and ROOT/val/<class>/*.JPEG, as torchvision and the original scripts have them.

    Training images get random resized crops, flips and colour jitter; to evaluate, the shorter side is resized to
    256/224 of the image size, and the centre is cropped. All are normalised by ImageNet's mean
    and standard deviation.

    Args:
        location: ROOT.
        split: "train" or "test", which is the folder val; or "val", if there is another for the test.
        image_size: pixels a side; 224 if None.
        download: not needed; image-net.org asks for an account.
        evaluated_share: see `fastnas.data.open`; 224/256 if None.
        skip_unreadable: decode every file here, and leave out those that cannot be decoded (`left_out` names them).
        test_share: see `fastnas.data.open`.

    Raises:
        UserError: as `open_folder`.
    """
    share = evaluated_share or EVALUATED_SHARE
    return replace(
        open_folder(location, split, image_size or 224, False, share, skip_unreadable, test_share),
        spec=f"imagenet:{location}",
        augmentation=AUGMENTATION,
        published=IMAGENET,
    )
