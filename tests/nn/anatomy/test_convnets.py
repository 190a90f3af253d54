import pytest
import timm
import torch
import torchvision
from torch import nn

from kdnas.nn.anatomy import read_anatomy
from kdnas.nn.cutting import Anatomy, Axis, Tie, outputs, sound_part

TIMM = ["resnet18", "mobilenetv3_small_050", "tf_efficientnet_lite0", "convnext_atto", "regnetx_002"]
TORCHVISION = ["mobilenet_v2"]
SLOW = [
    "timm:ghostnet_050",
    "torchvision:squeezenet1_1",
    "timm:resnet50",
    "timm:densenet121",
    "timm:repvgg_a0",
    "timm:hrnet_w18_small",
    "timm:xception41",
    "timm:mobilevit_xxs",
    "timm:inception_next_atto",
    "torchvision:resnet18",
    "torchvision:googlenet",
]
NAMES = [
    *(f"timm:{name}" for name in TIMM),
    *(f"torchvision:{name}" for name in TORCHVISION),
    *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
]


def randomised(network):
    """Return the network with batch norms that are not the identity."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    torch.manual_seed(0)
    library, _, name = request.param.partition(":")
    settings = {"init_weights": False} if name == "googlenet" else {}
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    network = randomised(make(name, num_classes=5, **settings))
    example = torch.randn(2, 3, 64, 64)
    return name, network, example, sound_part(read_anatomy(network, example), network, example)


def test_a_cut_network_computes_what_the_masked_one_does(case):
    _, network, example, anatomy = case
    assert anatomy.kind == "convnet"
    sizes = {axis.name: max(axis.size // 2, 1) for axis in anatomy.axes if not axis.inexact}
    kept = anatomy.prefix(sizes | {depth.name: max(depth.least, len(depth.blocks) // 2) for depth in anatomy.depths})
    cut, masked = anatomy.cut(network, kept), outputs(anatomy.mask(network, kept), example)
    assert torch.allclose(outputs(cut, example), masked, atol=1e-4 * float(masked.abs().max()))
    assert sum(p.numel() for p in cut.parameters()) < 0.7 * sum(p.numel() for p in network.parameters())


def test_the_whole_network_is_cut_out_bit_for_bit(case):
    _, network, example, anatomy = case
    whole = anatomy.cut(network, anatomy.prefix(anatomy.sizes))
    assert torch.equal(outputs(whole, example), outputs(network, example))


def test_every_size_that_a_layer_says_of_itself_is_that_of_its_weights(case):
    _, network, _, anatomy = case
    cut = anatomy.cut(network, anatomy.prefix({axis.name: max(axis.size // 2, 1) for axis in anatomy.axes}))
    for module in cut.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


class Residual(nn.Module):
    def __init__(self, channels, *, skip):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.skip = skip

    def forward(self, images):
        return torch.relu(self.body(images) + (images if self.skip else 0))


def own(skip):
    blocks = [Residual(8, skip=skip) for _ in range(3)]
    return randomised(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sequential(*blocks), nn.Flatten(), nn.Linear(8 * 36, 4))
    )


def test_blocks_are_removable_where_they_are_residual():
    example = torch.randn(2, 3, 8, 8)
    assert [depth.blocks for depth in read_anatomy(own(True), example).depths] == [("2.0", "2.1", "2.2")]
    assert read_anatomy(own(False), example).depths == ()


def test_channels_that_are_flattened_into_a_linear_layer_are_cut_with_all_their_places():
    network, example = own(True), torch.randn(2, 3, 8, 8)
    anatomy = sound_part(read_anatomy(network, example), network, example)
    axis = next(axis for axis in anatomy.axes if axis.size == 8 and any(tie.tensor == "4.weight" for tie in axis.ties))
    kept = anatomy.prefix({axis.name: 3})
    cut = anatomy.cut(network, kept)
    assert cut[4].in_features == 3 * 36
    assert torch.allclose(outputs(cut, example), outputs(anatomy.mask(network, kept), example), atol=1e-5)


def test_blocks_that_are_fed_next_to_nothing_are_not_taken_for_residual_ones():
    network, example = own(False), torch.randn(2, 3, 8, 8)
    for parameter in network[0].parameters():
        parameter.data.mul_(1e-9)
    assert read_anatomy(network, example).depths == ()


class Shuffled(nn.Module):
    """Reads the second half of its channels by position: no axis of it can be cut."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        maps = self.first(images)
        return self.head(self.second(maps[:, 4:8] * maps[:, :4]).mean((2, 3)))


class HeadsByTheirSize(nn.Module):
    """Makes as many heads as its channels hold: half of these are two whole heads only if they adjoin."""

    def __init__(self):
        super().__init__()
        self.stem, self.values, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, images):
        rows = self.values(self.stem(images).flatten(2).transpose(1, 2))
        return self.head(nn.functional.normalize(rows.unflatten(-1, (-1, 4)), dim=-1).flatten(-2).mean(1))


def test_channels_of_which_only_some_can_be_cut_together_are_left_whole():
    torch.manual_seed(0)
    network, example = HeadsByTheirSize().eval(), torch.randn(2, 3, 16, 16)
    places = torch.arange(16)[:, None]
    ties = [Tie("values.weight", 0, places), Tie("values.bias", 0, places), Tie("head.weight", 1, places, reads=True)]
    read = Anatomy("own", (Axis("values", "inner", 16, tuple(ties)),), ())
    for kept in (range(8), range(12)):
        cut, masked = read.cut(network, {"values": kept}), read.mask(network, {"values": kept})
        assert torch.allclose(outputs(cut, example), outputs(masked, example), atol=1e-6)
    anatomy = sound_part(read, network, example)
    assert anatomy.axes == ()
    assert "differ from the masked one's" in anatomy.uncut[0].why


def test_the_blocks_of_convnext_v2_are_removable_and_its_response_norms_are_no_blocks():
    torch.manual_seed(0)
    network = timm.create_model("convnextv2_atto", depths=(1, 1, 3, 1), dims=(8, 8, 16, 16), num_classes=5).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    example = torch.randn(2, 3, 64, 64)
    anatomy = sound_part(read_anatomy(network, example), network, example)
    assert [depth.blocks for depth in anatomy.depths if len(depth.blocks) > 1] == [
        tuple(f"stages.2.blocks.{number}" for number in range(3))
    ]
    kept = {next(depth.name for depth in anatomy.depths if len(depth.blocks) > 1): [0, 2]}
    cut, masked = anatomy.cut(network, kept), anatomy.mask(network, kept)
    assert torch.allclose(outputs(cut, example), outputs(masked, example), atol=1e-5)
    assert len(cut.stages[2].blocks) == 2
    assert not torch.allclose(outputs(cut, example), outputs(network, example), atol=1e-4)


def test_what_cannot_be_cut_is_left_whole_with_the_reason():
    network, example = Shuffled().eval(), torch.randn(2, 3, 8, 8)
    anatomy = sound_part(read_anatomy(network, example), network, example)
    assert "first.channels" not in anatomy.sizes
    assert any("first" in part.what and part.why for part in anatomy.uncut)


class AtLeastTwenty(nn.Module):
    """Its code counts on twenty channels of two layers: one of these may be cut to half, both may not."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3)
        self.mixed, self.head = nn.Conv2d(32, 8, 1), nn.Linear(8, 2)

    def forward(self, images):
        maps = torch.cat([self.first(images), self.second(images)], 1)
        if maps.shape[1] < 20:
            raise RuntimeError("twenty channels at least")
        return self.head(torch.relu(self.mixed(maps)).mean((2, 3)))


def test_parts_that_only_together_cannot_be_cut_are_not_all_cut():
    torch.manual_seed(0)
    network, example = AtLeastTwenty().eval(), torch.randn(2, 3, 8, 8)
    anatomy = sound_part(read_anatomy(network, example), network, example)
    kept = anatomy.prefix({axis.name: axis.size // 2 for axis in anatomy.axes})
    cut, masked = anatomy.cut(network, kept), anatomy.mask(network, kept)
    assert torch.allclose(outputs(cut, example), outputs(masked, example), atol=1e-5)
    assert sorted(anatomy.sizes) == ["first.channels", "mixed.channels"]
    assert [(part.what, "with other cuts" in part.why) for part in anatomy.uncut] == [("second.channels", True)]


class NormedBeside(nn.Module):
    """A layer that is cut exactly and one under a norm: its code takes a cut of either, and not of both."""

    def __init__(self):
        super().__init__()
        self.plain, self.normed = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1)
        self.norm = nn.LayerNorm(16)
        self.mixed, self.head = nn.Conv2d(32, 8, 1), nn.Linear(8, 2)

    def forward(self, images):
        normed = self.norm(self.normed(images).movedim(1, -1)).movedim(-1, 1)
        maps = torch.cat([self.plain(images), normed], 1)
        if maps.shape[1] < 20:
            raise RuntimeError("twenty channels at least")
        return self.head(torch.relu(self.mixed(maps)).mean((2, 3)))


def test_a_part_under_a_norm_that_fails_beside_exact_cuts_alone_is_left_whole():
    torch.manual_seed(0)
    network, example = NormedBeside().eval(), torch.randn(2, 3, 8, 8)
    read = read_anatomy(network, example)
    assert read.by_name["normed.channels"].inexact
    assert not read.by_name["plain.channels"].inexact
    anatomy = sound_part(read, network, example)
    assert sorted(anatomy.sizes) == ["mixed.channels", "plain.channels"]
    assert [(part.what, "with other cuts" in part.why) for part in anatomy.uncut] == [("normed.channels", True)]
    outputs(anatomy.cut(network, anatomy.prefix(dict.fromkeys(anatomy.sizes, 4))), example)


def test_a_network_of_which_nothing_can_be_cut_is_refused_in_words():
    with pytest.raises(ValueError, match="nothing of a Sequential can be cut"):
        read_anatomy(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(2, 3, 2, 2))


class Block(nn.Module):
    """A block of two convolutions, and what may stand behind each."""

    def __init__(self, norm=nn.BatchNorm2d, act=nn.ReLU, gate=False):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.n1, self.n2, self.act = norm(16), norm(16), act()
        self.gate = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), nn.Sigmoid()) if gate else None

    def forward(self, x):
        made = self.n2(self.b(self.act(self.n1(self.a(x)))))
        made = made * self.gate(made.mean((2, 3)))[:, :, None, None] if self.gate is not None else made
        return x + made


class Own(nn.Module):
    """A stem, a body, and a head over its mean."""

    def __init__(self, *body):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 16, 3), nn.Sequential(*body), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class ByPlace(Own):
    """Weighs its blocks by their place."""

    def forward(self, x):
        x = self.stem(x)
        for weight, block in zip((1.0, 0.5, 0.25), self.body, strict=False):
            x = x + weight * block(x)
        return self.head(x.mean((2, 3)))


def instance_norm(width):
    return nn.InstanceNorm2d(width, affine=True)


def normed_weights():
    network = Own(Block(), Block())
    nn.utils.parametrizations.weight_norm(network.body[0].a)
    return network


@pytest.mark.parametrize(
    ("make", "roles", "blocks", "why"),
    [
        (lambda: Own(*(Block(instance_norm) for _ in range(3))), (1, 3), [3], ""),
        (lambda: Own(*(Block(act=nn.PReLU) for _ in range(3))), (1, 3), [3], ""),
        (lambda: Own(*(Block(gate=True) for _ in range(3))), (1, 6), [3], ""),
        (lambda: Own(nn.ConvTranspose2d(16, 16, 2, 2), Block(), Block()), (2, 2), [2], ""),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 5)), (1, 0), [], ""),
        (lambda: ByPlace(*(Block() for _ in range(3))), (1, 3), [], "differ from the masked one's"),
        (normed_weights, (0, 1), [1], "body.0.a.weight is computed anew from others whenever it is used"),
    ],
)
def test_networks_as_users_write_them_are_cut_or_said_why_not(make, roles, blocks, why):
    torch.manual_seed(0)
    network, example = make().eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    anatomy = sound_part(read_anatomy(network, example), network, example)
    found = [axis.role for axis in anatomy.axes]
    assert (found.count("width"), found.count("inner")) == roles
    assert [len(depth.blocks) for depth in anatomy.depths] == blocks
    assert any(why in part.why for part in anatomy.uncut) if why else anatomy.uncut == ()
