"""Vision transformers with elastic depth, width, heads and MLPs, of any patch size (Dosovitskiy et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from kdnas.core.arch import Arch, Scalar
from kdnas.core.operator import Operator, OperatorGroup
from kdnas.nn import transformers
from kdnas.nn.transformers import VisionPlan, VisionTransformer, resized_places
from kdnas.students import STUDENTS, FamilyContext
from kdnas.students._inheriting_layers import State, resized_kernel
from kdnas.students._settings import Setting, image_shape, one_of, whole
from kdnas.students._transformer import Network, TransformerFamily, group


class VisionSettings(NamedTuple):
    """What the family adds to the choices of every transformer."""

    patch_size: int
    distillation_token: bool


@STUDENTS.register
class ViT(TransformerFamily[VisionSettings]):
    """Vision transformers: width, depth, heads, MLP ratio and patch size, layer by layer where asked for.

    Images are cut into squares of `patch_size` pixels, padded where they leave a rest. With a `distillation_token` the
    losses on logits teach a classifier of that token, the labels that of the class token, and the student answers by
    the mean of both (DeiT, Touvron et al., ICML 2021); `hard` is the loss that DeiT takes.
    """

    name = "vit"
    tasks = ("image_classification",)
    settings: ClassVar[Mapping[str, Setting]] = {
        "patch_size": whole(1, 64),
        "distillation_token": one_of(False, True),
    }
    defaults: ClassVar[Mapping[str, Scalar]] = {"distillation_token": False}
    own_class = VisionSettings
    network_class = VisionTransformer
    embeddings = (transformers.PatchEmbeddings, resized_places, transformers.VisionEmbeddings)

    def __init__(self, context: FamilyContext):
        super().__init__(context)
        self._shape = image_shape(context, self.name)

    def plan(self, arch: Arch) -> VisionPlan:
        """Return every layer's shape for `arch`."""
        network = self.network(arch)
        layers = self.layer_plans(network, self.tokens(network))
        patch, distilled = network.own.patch_size, network.own.distillation_token
        return VisionPlan(self._shape, patch, network.width, layers, self.task.outputs, distilled)

    def ancestral(self) -> tuple[nn.Module, Tensor]:
        """Return the network of the ancestor, and images that show what of it matters. Raises ConfigError."""
        normalised, _ = self._known_ancestor()
        return normalised.network, self._normalised_samples(normalised)

    def tokens(self, network: Network[VisionSettings]) -> int:
        """Return how many there are: the patches, the class token, and the distillation token."""
        _, height, width = self._shape
        patch = network.own.patch_size
        return -(-height // patch) * -(-width // patch) + 1 + network.own.distillation_token

    def entry(self, network: Network[VisionSettings]) -> OperatorGroup:
        """Return the patches, the tokens that are learned, and all places."""
        channels, rows, columns = self._shape
        width, patch, tokens = network.width, network.own.patch_size, self.tokens(network)
        patches = Operator("patches", channels, width, rows, columns, kernel=patch, stride=patch)
        learned = tokens + 1 + network.own.distillation_token
        return group(patches, Operator("embedding", learned, width, tokens, 1))

    def ending(self, network: Network[VisionSettings]) -> OperatorGroup:
        """Return the last norm, and a classifier a token that has one."""
        width, heads = network.width, 1 + network.own.distillation_token
        classifier = Operator("classifier", width, self.task.outputs, 1, 1)
        return group(Operator("norm", width, width, heads, 1), *[classifier] * heads)

    @staticmethod
    def fitted(state: State, teacher: VisionTransformer, student: VisionTransformer) -> State:
        """Return a cut teacher's `state` for a student of other patches and tokens.

        A distillation token that the teacher has not begins as its class token.
        """
        theirs, ours = teacher.embeddings, student.embeddings
        kernel, places = "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings"
        fitted = {**state, kernel: resized_kernel(state[kernel], ours.patch_embeddings.patch)}
        first, grid = state[places][: theirs.extra], state[places][theirs.extra :]
        firsts = first[[0, theirs.extra - 1][: ours.extra]]
        resized = grid if theirs.grid == ours.grid else resized_places(grid, theirs.grid, ours.grid)
        fitted[places] = torch.cat([firsts, resized])
        if theirs.extra == 1:
            fitted["embeddings.distillation_token"] = state["embeddings.cls_token"]
            fitted |= {f"distillation_{name}": state[name] for name in ("classifier.weight", "classifier.bias")}
        return fitted
