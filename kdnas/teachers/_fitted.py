"""A network behind what it expects, giving logits whatever it answers in: tuples, mappings, 1x1 maps, probabilities.

Shapes: B batch, K classes, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnas.nn.exact import ROUNDING, apart
from kdnas.tasks._images import normalised

_LOGITS_KEYS = ("logits", "out", "output", "outputs", "scores", "predictions", "pred")
_SUM_TOLERANCE = 2e-3
"""By how much of itself a sum of probabilities may differ: half precision rounds to that."""


class NoLogitsError(ValueError):
    """A network's output has no logits in it; the message lists what it has."""


class Fitted(nn.Module):
    """A network behind what it expects: raw [B, C, H, W] in 0..255 to logits [B, K] in the data's class order.

    Args:
        network: Takes normalised images.
        mean: Per channel on the 0-255 scale.
        std: Per channel on the 0-255 scale.
        repeat: How often channels are repeated: 3 where the images are grey and the network takes colours.
        size: Height and width that images are resized to.
        classes: How many classes the network answers for, by which logits are recognised among its outputs.
    """

    order: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        repeat: int = 1,
        size: tuple[int, int] | None = None,
        classes: int | None = None,
    ):
        super().__init__()
        self.default_format = False
        """Whether the network takes images in torch's default memory format only."""
        self.normalised = normalised(network, mean, std)
        self.repeat = repeat
        self.size = size
        self.classes = classes
        self.total: float | None = None
        """What an image's answers sum to where they are probabilities, whose log is taken; None where they are not."""
        self.adapted: list[str] = []
        """What is done with the network's answers, in words."""
        self.register_buffer("order", None)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Fitted:
        """Apply `function` to every tensor, as `to` does; weights keep torch's default format where images must."""
        super()._apply(function, recurse)
        if self.default_format:
            for weight in self.parameters():
                weight.data = weight.data.clone(memory_format=torch.contiguous_format)  # see `forward`
        return self

    def put_in_order(self, order: Sequence[int] | None) -> None:
        """Answer for the classes `order` of the network's, in that order; None: for all as they are."""
        self.order = None if order is None else torch.tensor(order, device=next(self.normalised.buffers()).device)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] for raw `images` [B, C, H, W] in 0..255."""
        if self.default_format:
            # A copy, since strides of one channel fit both formats and torch would keep those of the other.
            images = images.clone(memory_format=torch.contiguous_format)
        if self.repeat > 1:
            images = images.repeat(1, self.repeat, 1, 1)
        if self.size is not None:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)
        logits = logits_of(self.normalised(images), self.classes)
        if self.total is not None:
            logits = log_of(logits, self.total)
        if logits.dtype not in (torch.float32, torch.bfloat16):
            logits = logits.float()
        return logits if self.order is None else logits[:, self.order]


def settle(module: Fitted, probe: Tensor) -> Exception | None:
    """Find out how to ask the network, and whether it gives probabilities; return why it gives no logits for `probe`.

    It is asked as students' trainings ask it, with channels-last images. Where it fails so, or has other outputs than
    for images in torch's default format, it gets those.
    """
    probe = probe.contiguous()
    seen: list[Any] = []
    handle = module.normalised.register_forward_hook(lambda part, inputs, answer: seen.append(answer))
    try:
        plain = module(probe)
        module.default_format = not _same_in_channels_last(module, probe[:2])
    except Exception as error:  # the network is the user's: anything may come
        return error
    finally:
        handle.remove()
    if len(plain) != len(probe):
        return NoLogitsError(f"the network gives {tuple(plain.shape)}")
    if (found := in_words(seen[0])) != "":
        module.adapted.append(found)
    if module.default_format:
        module.adapted.append("it gets images in torch's default memory format: it takes no channels-last ones")
    module.total = probability_total(plain)
    if module.total is not None:
        module.adapted.append(f"outputs: probabilities that sum to {module.total:g}, whose logarithm is taken")
    return None


def _same_in_channels_last(module: Fitted, probe: Tensor) -> bool:
    """Return whether the network has the same outputs for channels-last images, its weights as they are or laid out so.

    Whoever measures its latency lays out the weights so.
    """
    plain, images = module(probe), probe.contiguous(memory_format=torch.channels_last)
    if not plain.numel():
        return True  # it fails on so few images: it is refused by the check of one alone
    weights = [(weight, weight.data) for weight in module.parameters()]
    try:
        others = [module(images)]
        module.to(memory_format=torch.channels_last)
        others.append(module(images))
    except Exception:  # `.view` on a channels-last map, and whatever else strides decide
        return False
    finally:
        for weight, data in weights:
            weight.data = data
    # A network that draws at random differs from itself too: the format is not the reason then.
    return all(apart(other, plain) <= ROUNDING for other in others) or apart(module(probe), plain) > ROUNDING


def logits_of(answer: Any, classes: int | None = None) -> Tensor:
    """Return the logits [B, K] in what a network gave. Raises NoLogitsError where there are none, or several."""
    if isinstance(answer, Tensor):
        return _rows(answer)
    if (named := getattr(answer, "logits", None)) is not None and isinstance(named, Tensor):
        return _rows(named)
    if isinstance(answer, Mapping):
        key = next((key for key in _LOGITS_KEYS if key in answer), None)
        if key is None and len(answer) == 1:
            key = next(iter(answer))
        if key is None:
            raise NoLogitsError(f"the network gives a dictionary of {', '.join(map(str, answer))}")
        return logits_of(answer[key], classes)
    if isinstance(answer, (tuple, list)):
        rows = [part for part in answer if isinstance(part, Tensor) and part.ndim >= 2 and _squeezed(part).ndim == 2]
        fitting = [part for part in rows if classes is None or _squeezed(part).shape[1] == classes]
        if len(fitting or rows) == 1:
            return _rows((fitting or rows)[0])
        shown = ", ".join(
            str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in answer
        )
        raise NoLogitsError(
            f"the network gives a {type(answer).__name__} of {shown}: which are its logits is not known"
        )
    raise NoLogitsError(f"the network gives an object of type {type(answer).__name__}")


def in_words(answer: Any) -> str:
    """Return how logits were found in what a network gave; empty where it gave them as they are."""
    if isinstance(answer, Tensor):
        return f"its answers of shape {tuple(answer.shape)[1:]} are taken as a row an image" if answer.ndim > 2 else ""
    if isinstance(answer, Mapping) or hasattr(answer, "logits"):
        names = answer if isinstance(answer, Mapping) else getattr(answer, "_fields", None) or vars(answer)
        return f"it gives several outputs ({', '.join(map(str, names))}), of which the logits are taken"
    return f"it gives a {type(answer).__name__} of {len(answer)}, of which the logits are taken"


def probability_total(answers: Tensor) -> float | None:
    """Return what the rows of `answers` [B, K] sum to where they are probabilities; None where they are not.

    Probabilities are not negative and every row has the same sum: 1, or 100 where they are percentages.
    """
    rows = answers.double()
    sums = rows.sum(dim=1)
    total = float(sums.median())
    if not total > 0 or rows.shape[1] < 2:
        return None
    if float(rows.min()) < -1e-6 * total or float((sums - total).abs().max()) > _SUM_TOLERANCE * total:
        return None
    return 1.0 if abs(total - 1.0) <= _SUM_TOLERANCE else total


def log_of(probabilities: Tensor, total: float) -> Tensor:
    """Return the logarithms [B, K] in float32 of probabilities that sum to `total`.

    They are the logits that a softmax made them from, up to a number an image. What was too small for its type is taken
    as the smallest positive number of the type.
    """
    least = 2.0**-25 if probabilities.dtype == torch.float16 else torch.finfo(torch.float32).tiny
    return (probabilities.float() / total).clamp_min(least).log()


def _rows(answers: Tensor) -> Tensor:
    squeezed = _squeezed(answers)
    if squeezed.ndim != 2:
        raise NoLogitsError(f"the network gives {tuple(answers.shape)}" + _hint(answers))
    return squeezed


def _hint(answers: Tensor) -> str:
    if answers.ndim == 1:
        whole = not answers.is_floating_point() or bool((answers == answers.round()).all())
        return ", one number an image" + (": the index of the class, nothing of the others" if whole else "")
    return ""


def _squeezed(answers: Tensor) -> Tensor:
    """Return [B, K, 1, ...] as [B, K], anything else as it is."""
    return answers.flatten(1) if answers.ndim > 2 and answers.shape[1:].numel() == answers.shape[1] else answers
