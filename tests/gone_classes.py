"""The classes whose source texts the old pickles of the corpus carry, written anew for torch of today."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class SmallCNN(nn.Module):
    """Two convolutions, a mean over the places, and a head."""

    def __init__(self, in_ch: int = 3, width: int = 8, n_classes: int = 5, p_drop: float = 0.25) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_ch, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width * 2, 3, stride=2, groups=2)
        self.drop = nn.Dropout(p_drop)
        self.fc = nn.Linear(width * 2, n_classes)

    def forward(self, x: torch.Tensor) -> Any:
        """Images, (N, in_ch, H, W), to logits, (N, n_classes)."""
        x = functional.relu(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.drop(x.mean(3).mean(2)))


class Attn(nn.Module):
    """Holds two projections and a mask; the attention is that of today's tests."""

    mask: torch.Tensor

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.q = nn.Linear(d, d)
        self.k = nn.Linear(d, d, bias=False)
        self.scale = d**-0.5
        self.register_buffer("mask", torch.ones(4, 4))

    def forward(self, x: torch.Tensor) -> Any:
        """Sequences, (N, 4, d), weighed by themselves."""
        return (self.q(x) @ self.k(x).transpose(1, 2) * self.scale * self.mask).softmax(-1) @ x


class Nested(nn.Module):
    """Containers of all kinds, with a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 8, padding_idx=0)
        self.blocks = nn.ModuleList([Attn(8), Attn(8)])
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 2), "b": nn.Linear(8, 3)})
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(2) * index) for index in range(3)])
        self.named = nn.ParameterDict(
            {"alpha": nn.Parameter(torch.tensor(1.5)), "beta": nn.Parameter(torch.zeros(2, 2))}
        )
        self.rnn = nn.LSTM(8, 4, num_layers=1, bidirectional=True)
        self.seq = nn.Sequential(
            nn.Conv1d(4, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm1d(4), nn.Sequential(nn.PReLU())
        )
        self.lm_head = nn.Linear(8, 7, bias=False)
        self.lm_head.weight = self.emb.weight
        self.maybe = None
        self.register_parameter("absent", None)
        self.register_buffer("absent_buf", None)

    def forward(self, tokens: torch.Tensor) -> Any:
        """Tokens, (N, 4), through every part."""
        x = self.emb(tokens)
        for block in self.blocks:
            x = block(x)
        x = self.seq(functional.pad(self.rnn(x)[0], (1, 1)))
        scale = sum(part.sum() * (place + 1) for place, part in enumerate(self.scales))
        scale = scale * self.named["alpha"] + self.named["beta"].sum()
        return torch.cat([head(x) for head in (*self.heads.values(), self.lm_head)], dim=-1) * scale + len(self.named)


class Traceable(nn.Module):
    """A convolution, and a head without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> Any:
        """Images, (N, 3, H, W), to (N, 2)."""
        return self.fc(functional.relu(self.bn(self.conv(x))).mean(3).mean(2))


class Bare(nn.Module):
    """One parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(4, 6))

    def forward(self, x: torch.Tensor) -> Any:
        """(N, 6) to (N, 4)."""
        return functional.linear(x, self.w)


class Dyn(nn.Module):
    """One layer, of a class that was defined in a script."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> Any:
        """(N, 2) to (N, 2)."""
        return self.l(x)


class Net(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> Any:
        """(N, 6) to (N, 4)."""
        return self.fc(x)
