"""Small networks with the structure of real ones, for surgery."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
from network import EfficientNetLite0


def sequential_cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet(nn.Module):
    """The head is registered first: registration is not the order of the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 10)
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2), BasicBlock(16, 16))
        self.layer3 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32))
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(x, 1))


class ConvBNReLU(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        pad = kernel // 2
        conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([ConvBNReLU(inputs, hidden, 1)] if expand != 1 else []),
            ConvBNReLU(hidden, hidden, 3, stride, hidden),
            *(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = [InvertedResidual(8, 8, 1, 1), InvertedResidual(8, 12, 2, 3), InvertedResidual(12, 12, 1, 3)]
        self.features = nn.Sequential(ConvBNReLU(3, 8, stride=2), *blocks, ConvBNReLU(12, 16, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 16) * 0.02)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 16, 8, 8)
        self.blocks = nn.ModuleList(Block(16, 2) for _ in range(3))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class LanguageModel(nn.Module):
    """torch's own encoder between an embedding and a head that are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(self.embed(ids))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.classifier = nn.ModuleDict({"topic": nn.Linear(12, 10)})

    def forward(self, ids: Tensor) -> Tensor:
        return self.classifier["topic"](self.lstm(self.embed(ids))[0].mean(1))


@dataclass(frozen=True)
class Architecture:
    """A network, an input of it, and where what is operated on lies.

    Attributes:
        make: makes it.
        example: makes an input.
        stem, head: the names of the first and last layer in the order of the forward.
        middle: a module with parameters that can be left out; empty if there is none.
        essential: one that cannot.
        cut: where to truncate it.
        features: modules to look at.
        tied: the head shares its weight.
        rest: what the forward does by function calls with what the module at the cut gave.
    """

    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    stem: str
    head: str
    middle: str
    essential: str
    cut: str
    features: tuple[str, ...]
    tied: bool = False
    rest: Callable[[Any], Tensor] = lambda given: given


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def ids() -> Tensor:
    return torch.randint(1, 20, (2, 7))


def flat(given: Tensor) -> Tensor:
    return given.flatten(1)


def mean(given: Tensor) -> Tensor:
    return given.mean((2, 3))


def clipped(given: Tensor) -> Tensor:
    return mean(nn.functional.relu6(given))


ARCHITECTURES = {
    "cnn": Architecture(sequential_cnn, images, "0", "9", "4", "0", "5", ("2", "5")),
    "resnet": Architecture(
        ResNet, images, "conv1", "fc", "layer2.1", "layer3", "layer2", ("layer1", "layer2.0.conv1"), rest=flat
    ),
    "mobilenet": Architecture(
        *(MobileNet, images, "features.0.0", "classifier.1", "features.3", "features.2", "features.2"),
        *(("features.1",), False, mean),
    ),
    "vit": Architecture(
        *(ViT, images, "patch_embed.proj", "head", "blocks.1", "blocks", "blocks.1", ("blocks.0", "norm")),
        rest=lambda given: given[:, 0],
    ),
    "lm": Architecture(
        LanguageModel, ids, "embed", "head", "norm", "embed", "encoder.layers.0", ("encoder.layers.0",), tied=True
    ),
    "lstm": Architecture(
        Recurrent,
        ids,
        "embed",
        "classifier.topic",
        "",
        "lstm",
        "lstm",
        ("lstm", "classifier.topic"),
        False,
        lambda given: given[0].mean(1),
    ),
    "efficientnet": Architecture(
        EfficientNetLite0,
        images,
        "_conv_stem",
        "_fc",
        "_blocks.2",
        "_blocks.1",
        "_blocks.2",
        ("_blocks.0", "_bn1"),
        False,
        clipped,
    ),
}
