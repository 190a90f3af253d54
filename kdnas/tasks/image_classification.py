"""Images and the one class that each shows."""

from __future__ import annotations

from kdnas.tasks import TASKS
from kdnas.tasks._image_settings import Augmentation
from kdnas.tasks._images import Images


@TASKS.register
class ImageClassification(Images):
    """Images [B, C, H, W], uint8 as they are stored; the score is the share of them that are right."""

    Views = Augmentation
