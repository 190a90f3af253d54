"""Whether a teacher is a function of each image alone: the same answer twice, whatever stands beside it in the batch.

Dropout that stays active, batch statistics and heads that lose a batch of one make answers that no student can learn,
and that no cache can keep.

Shapes: B batch, K classes, C channels, H and W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdnas.errors import Problem, TeacherError
from kdnas.nn.exact import ROUNDING, apart, exact_arithmetic

_SHOWN = 5
_WITHIN = "normalised.network."
_ACTIVE = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def check_conduct(name: str, module: nn.Module, images: Tensor) -> tuple[str, ...]:
    """Return notes on the teacher `module`, which answers `images` [B, C, H, W], raw, alike however they are asked.

    Raises TeacherError where two forwards, another order, a part of the batch or an image alone give other answers.
    """
    module.eval()
    images = images.contiguous(memory_format=torch.channels_last)
    with exact_arithmetic(), torch.no_grad():
        whole = module(images)
        if not bool(torch.isfinite(whole).all()):
            raise TeacherError(Problem(f"teacher {name}", "gives NaN or infinite logits on the validation images"))
        for words, places in _ways(len(images)):
            try:
                answers = module(images[places].contiguous(memory_format=torch.channels_last))
            except Exception as error:  # the network is the user's: anything may come
                reason = (str(error) or type(error).__name__).splitlines()[0][:200]
                what = f"fails on {words}: {type(error).__name__}: {reason}{_about_squeeze(len(places))}"
                raise TeacherError(Problem(f"teacher {name}", what, "one row of logits an image")) from error
            expected = whole[places]
            if answers.shape != expected.shape:
                what = f"gives {tuple(answers.shape)} for {words}{_about_squeeze(len(places))}"
                raise TeacherError(Problem(f"teacher {name}", what, str(tuple(expected.shape))))
            share = apart(answers, expected)
            if not share <= ROUNDING:
                raise TeacherError(_dependence(name, module, words, share))
    still = [part_name for part_name, part in _parts(module) if part.training]
    if not still:
        return ()
    return (f"these parts say that they train even in eval mode, though its answers do not show it: {_first(still)}",)


def _ways(count: int) -> list[tuple[str, list[int]]]:
    everything = list(range(count))
    ways = [("the same images a second time", everything)]
    if count > 1:
        ways += [
            ("the same images in another order", everything[::-1]),
            ("half of the same images", everything[: max(count // 2, 1)]),
            ("an image alone", [count - 1]),
        ]
    return ways


def _parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a teacher under the names that they have in its own network."""
    return [(name.removeprefix(_WITHIN), part) for name, part in module.named_modules() if name]


def _dependence(name: str, module: nn.Module, words: str, share: float) -> Problem:
    """Return the problem of a teacher whose answers depend on more than the image, with what may be the reason."""
    reasons = []
    training = [(part, one) for part, one in _parts(module) if one.training]
    deciding = [(part, one) for part, one in training if isinstance(one, _ACTIVE)]
    active = [f"{part} ({type(one).__name__})" for part, one in deciding or training]
    if active:
        reasons.append(f"these parts train even in eval mode: {_first(active)}")
    norms = [
        f"{part} ({type(one).__name__})"
        for part, one in _parts(module)
        if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.running_mean is None
    ]
    if norms:
        reasons.append(f"these keep no running statistics and normalise by the batch: {_first(norms)}")
    if not reasons and words.endswith("second time"):
        reasons.append("something in its forward draws at random, as functional dropout without training=self.training")
    if not reasons:
        reasons.append("something in its forward reads other images of the batch, as a mean over dimension 0")
    what = f"its answers for {words} differ by {100 * share:.2g} % of its largest logit: {'; '.join(reasons)}"
    return Problem(f"teacher {name}", what, "answers that each image alone decides")


def _about_squeeze(count: int) -> str:
    return "; a squeeze() without a dimension loses a batch of one: use flatten(1)" if count == 1 else ""


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)})" if len(names) > _SHOWN else "")
