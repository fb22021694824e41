"""Well-known architectures, each built twice with other names and another nesting, and equal in what they compute."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Make = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class Twins:
    """Two ways to build one network, each from classes and channels (vocabulary for text).

    Attributes:
        one, other: what builds them.
        example: makes an input for a number of channels.
        channels: how many there are by default.
        changed: how many tensors differ in shape when classes and channels do.
    """

    one: Make
    other: Make
    example: Callable[[int], Tensor]
    channels: int
    changed: int


def images(channels: int) -> Tensor:
    return torch.randn(2, channels, 32, 32)


def sentences(vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (2, 7))


# -- EfficientNet-Lite0 and MobileNetV2 ---------------------------------------------------------------------------

LITE0 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
MOBILE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class Same(nn.Module):
    """A convolution padded as TensorFlow pads, which holds its weight itself."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs // groups, kernel, kernel) * 0.1)
        self.stride, self.groups = stride, groups

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        high, wide = (max((-(-size // self.stride) - 1) * self.stride + kernel - size, 0) for size in x.shape[-2:])
        x = functional.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return functional.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)


class Lite(nn.Module):
    """EfficientNet-Lite0, nested by stages, under names that share nothing with those of its weights file."""

    def __init__(self, classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        norm = lambda width: nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)  # noqa: E731
        self.entry = nn.ModuleDict({"filter": Same(channels, 32, 3, 2), "scale": norm(32)})
        self.levels, inputs = nn.ModuleList(), 32
        for count, kernel, stride, expansion, width in LITE0:
            level = nn.ModuleList()
            for index in range(count):
                hidden, unit = inputs * expansion, nn.ModuleDict()
                if expansion > 1:
                    unit["widen"] = nn.Sequential(Same(inputs, hidden, 1), norm(hidden))
                unit["space"] = nn.Sequential(
                    Same(hidden, hidden, kernel, stride if index == 0 else 1, hidden), norm(hidden)
                )
                unit["narrow"] = nn.Sequential(Same(hidden, width, 1), norm(width))
                level.append(unit)
                inputs = width
            self.levels.append(level)
        self.exit = nn.ModuleDict({"filter": Same(inputs, 1280, 1), "scale": norm(1280)})
        self.output = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.entry["scale"](self.entry["filter"](x)))
        for level in self.levels:
            for unit in level:
                y = x
                for part in ("widen", "space"):
                    y = functional.relu6(unit[part](y)) if part in unit else y
                y = unit["narrow"](y)
                x = x + y if y.shape == x.shape else y
        x = functional.relu6(self.exit["scale"](self.exit["filter"](x)))
        return self.output(x.mean((2, 3)))


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if y.shape == x.shape else y


class MobileFlat(nn.Module):
    """As its best known implementation has it: `features.3.conv.1.0`."""

    def __init__(self, classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        unit = lambda *args, **kwargs: nn.Sequential(*conv_bn(*args, **kwargs), nn.ReLU6())  # noqa: E731
        self.features, inputs = nn.Sequential(unit(channels, 32, 3, 2)), 32
        for expansion, width, count, stride in MOBILE:
            for index in range(count):
                hidden = inputs * expansion
                first = [unit(inputs, hidden, 1)] if expansion > 1 else []
                middle = unit(hidden, hidden, 3, stride if index == 0 else 1, groups=hidden)
                self.features.append(Residual(*first, middle, *conv_bn(hidden, width, 1)))
                inputs = width
        self.features.append(unit(inputs, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class MobileStaged(nn.Module):
    """The same with named parts, stage by stage."""

    def __init__(self, classes: int = 1000, channels: int = 3) -> None:
        super().__init__()
        self.stem, self.stem_norm = conv_bn(channels, 32, 3, 2)
        inputs = 32
        for number, (expansion, width, count, stride) in enumerate(MOBILE):
            stage = nn.ModuleList()
            for index in range(count):
                hidden, block = inputs * expansion, nn.Module()
                if expansion > 1:
                    block.expand, block.expand_norm = conv_bn(inputs, hidden, 1)
                block.depth, block.depth_norm = conv_bn(hidden, hidden, 3, stride if index == 0 else 1, hidden)
                block.project, block.project_norm = conv_bn(hidden, width, 1)
                stage.append(block)
                inputs = width
            self.add_module(f"stage{number}", stage)
        self.final, self.final_norm = conv_bn(inputs, 1280, 1)
        self.logits = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.stem_norm(self.stem(x)))
        for number in range(len(MOBILE)):
            for block in self.get_submodule(f"stage{number}"):
                y = functional.relu6(block.expand_norm(block.expand(x))) if hasattr(block, "expand") else x
                y = block.project_norm(block.project(functional.relu6(block.depth_norm(block.depth(y)))))
                x = x + y if y.shape == x.shape else y
        return self.logits(functional.relu6(self.final_norm(self.final(x))).mean((2, 3)))


# -- VGG16 --------------------------------------------------------------------------------------------------------

VGG = ((8, 2), (16, 2), (32, 3), (64, 3), (64, 3))


class VggFlat(nn.Module):
    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.features, inputs = nn.Sequential(), channels
        for width, count in VGG:
            for _ in range(count):
                self.features.extend([nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()])
                inputs = width
            self.features.append(nn.MaxPool2d(2))
        parts = [nn.Linear(inputs, 96), nn.ReLU(), nn.Dropout(), nn.Linear(96, 96), nn.ReLU(), nn.Dropout()]
        self.classifier = nn.Sequential(*parts, nn.Linear(96, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class VggStaged(nn.Module):
    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.level, inputs = nn.ModuleList(), channels
        for width, count in VGG:
            level = nn.ModuleDict()
            for letter in "abc"[:count]:
                level[f"filter_{letter}"] = nn.Conv2d(inputs, width, 3, padding=1)
                inputs = width
            self.level.append(level)
        self.fc6, self.fc7, self.fc8 = nn.Linear(inputs, 96), nn.Linear(96, 96), nn.Linear(96, classes)

    def forward(self, x: Tensor) -> Tensor:
        for level in self.level:
            for conv in level.values():
                x = torch.relu(conv(x))
            x = functional.max_pool2d(x, 2)
        return self.fc8(torch.relu(self.fc7(torch.relu(self.fc6(x.flatten(1))))))


# -- ResNet -------------------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride)
        self.conv3, self.bn3 = conv_bn(width, width * 4, 1)
        changes = stride > 1 or inputs != width * 4
        self.downsample = nn.Sequential(*conv_bn(inputs, width * 4, 1, stride)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(self.bn3(self.conv3(y)) + (self.downsample(x) if self.downsample else x))


class ResNet(nn.Module):
    """ResNet-50 with narrow layers, as its best known implementation has it."""

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(channels, 8, 7, 2)
        inputs = 8
        for number, count in enumerate((3, 4, 6, 3)):
            width = 8 << number
            blocks = []
            for index in range(count):
                blocks.append(Bottleneck(inputs, width, 2 if number and not index else 1))
                inputs = width * 4
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(x.mean((2, 3)))


class ResidualUnit(nn.Module):
    """The way around is registered after the way through, or before it."""

    def __init__(self, inputs: int, width: int, stride: int, around_first: bool) -> None:
        super().__init__()
        parts = [*conv_bn(inputs, width, 1), nn.ReLU(), *conv_bn(width, width, 3, stride), nn.ReLU()]
        through = nn.Sequential(*parts, *conv_bn(width, width * 4, 1))
        if not around_first:
            self.through = through
        if stride > 1 or inputs != width * 4:
            self.around = nn.ModuleDict(dict(zip(("w", "n"), conv_bn(inputs, width * 4, 1, stride), strict=True)))
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        around = self.around["n"](self.around["w"](x)) if hasattr(self, "around") else x
        return torch.relu(self.through(x) + around)


class ResNetStaged(nn.Module):
    def __init__(self, classes: int = 10, channels: int = 3, around_first: bool = False) -> None:
        super().__init__()
        self.trunk, inputs = nn.ModuleList([nn.Sequential(*conv_bn(channels, 8, 7, 2))]), 8
        for number, count in enumerate((3, 4, 6, 3)):
            stage = nn.ModuleList()
            for index in range(count):
                stage.append(ResidualUnit(inputs, 8 << number, 2 if number and not index else 1, around_first))
                inputs = 4 * (8 << number)
            self.trunk.append(stage)
        self.answer = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.trunk[0](x)), 3, 2, 1)
        for stage in list(self.trunk)[1:]:
            for unit in stage:
                x = unit(x)
        return self.answer(x.mean((2, 3)))


# -- ViT ----------------------------------------------------------------------------------------------------------

WIDTH, HEADS, DEPTH = 32, 4, 6


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Vit(nn.Module):
    """`blocks.3.attn.qkv`; the tokens are parameters of the whole network."""

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, WIDTH, 8, 8)})
        self.blocks = nn.ModuleList()
        for _ in range(DEPTH):
            block = nn.Module()
            block.norm1 = nn.LayerNorm(WIDTH)
            block.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
            block.norm2 = nn.LayerNorm(WIDTH)
            block.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)})
            self.blocks.append(block)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = x + block.attn["proj"](attention(*block.attn["qkv"](block.norm1(x)).chunk(3, -1)))
            x = x + block.mlp["fc2"](functional.gelu(block.mlp["fc1"](block.norm2(x))))
        return self.head(self.norm(x)[:, 0])


class Attention(nn.Module):
    """Weights as torch's own attention holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(3 * WIDTH, WIDTH) * 0.1)
        self.in_proj_bias = nn.Parameter(torch.randn(3 * WIDTH) * 0.1)
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attention(*functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)))


class VitNested(nn.Module):
    """`encoder.layers.encoder_layer_3.self_attention.in_proj_weight`; the positions come after the patches."""

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.conv_proj = nn.Conv2d(channels, WIDTH, 8, 8)
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.randn(1, 17, WIDTH))
        self.encoder.layers = nn.ModuleDict()
        for number in range(DEPTH):
            layer = nn.Module()
            layer.ln_1, layer.self_attention, layer.ln_2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
            layer.mlp = nn.Sequential(
                nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * WIDTH, WIDTH)
            )
            self.encoder.layers[f"encoder_layer_{number}"] = layer
        self.encoder.ln = nn.LayerNorm(WIDTH)
        self.heads = nn.Sequential(nn.Linear(WIDTH, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
        for layer in self.encoder.layers.values():
            x = x + layer.self_attention(layer.ln_1(x))
            x = x + layer.mlp(layer.ln_2(x))
        return self.heads(self.encoder.ln(x)[:, 0])


# -- Transformer encoder ------------------------------------------------------------------------------------------


class Text(nn.Module):
    """`encoder.layer.3.attention.self.query`."""

    def __init__(self, classes: int = 10, vocabulary: int = 50) -> None:
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(vocabulary, WIDTH)
        self.embeddings.position_embeddings = nn.Embedding(16, WIDTH)
        self.embeddings.LayerNorm = nn.LayerNorm(WIDTH)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList()})
        for _ in range(DEPTH):
            layer = nn.Module()
            layer.attention = nn.Module()
            layer.attention.self = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")})
            layer.attention.output = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH), "LayerNorm": nn.LayerNorm(WIDTH)})
            layer.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, 4 * WIDTH)})
            layer.output = nn.ModuleDict({"dense": nn.Linear(4 * WIDTH, WIDTH), "LayerNorm": nn.LayerNorm(WIDTH)})
            self.encoder["layer"].append(layer)
        self.classifier = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        x = self.embeddings.word_embeddings(x) + self.embeddings.position_embeddings(place)
        x = self.embeddings.LayerNorm(x)
        for layer in self.encoder["layer"]:
            own, out = layer.attention.self, layer.attention.output
            x = out["LayerNorm"](x + out["dense"](attention(own["query"](x), own["key"](x), own["value"](x))))
            inner = functional.gelu(layer.intermediate["dense"](x))
            x = layer.output["LayerNorm"](x + layer.output["dense"](inner))
        return self.classifier(x[:, 0])


class TextOther(nn.Module):
    """`blocks.3.k_lin`; the keys are registered before the queries."""

    def __init__(self, classes: int = 10, vocabulary: int = 50) -> None:
        super().__init__()
        self.tokens, self.places, self.ln = (
            nn.Embedding(vocabulary, WIDTH),
            nn.Embedding(16, WIDTH),
            nn.LayerNorm(WIDTH),
        )
        self.blocks = nn.ModuleList()
        for _ in range(DEPTH):
            block = nn.Module()
            block.k_lin, block.v_lin, block.q_lin, block.out_lin = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            block.sa_norm = nn.LayerNorm(WIDTH)
            block.ffn = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
            block.ffn_norm = nn.LayerNorm(WIDTH)
            self.blocks.append(block)
        self.out = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln(self.tokens(x) + self.places(torch.arange(x.shape[1])))
        for block in self.blocks:
            x = block.sa_norm(x + block.out_lin(attention(block.q_lin(x), block.k_lin(x), block.v_lin(x))))
            x = block.ffn_norm(x + block.ffn(x))
        return self.out(x[:, 0])


TWINS = {
    "mobilenet-v2": Twins(MobileFlat, MobileStaged, images, 3, 3),
    "vgg16": Twins(VggFlat, VggStaged, images, 3, 3),
    "resnet50": Twins(ResNet, ResNetStaged, images, 3, 3),
    "vit": Twins(Vit, VitNested, images, 3, 3),
    "transformer": Twins(Text, TextOther, sentences, 50, 3),
}


def with_extras(model: nn.Module, seed: int, count: int = 4) -> nn.Module:
    """Put layers that nothing uses between the children of random modules, under names that begin with `extra`."""
    draw = random.Random(seed)
    for number in range(count):
        hosts = [module for module in model.modules() if len(module._modules) > 1]
        host = draw.choice(
            [module for module in hosts if not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))]
        )
        extra = draw.choice(
            [nn.Conv2d(7, 5, 3), nn.Linear(13, 11), nn.BatchNorm2d(9), nn.LayerNorm(6), nn.Embedding(5, 3)]
        )
        children = list(host._modules.items())
        children.insert(draw.randint(0, len(children)), (f"extra{number}", extra))
        host._modules.clear()
        host._modules.update(children)
    return model
