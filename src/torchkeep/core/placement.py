"""Which device each parameter and buffer of a model goes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import LoadError
from .names import Selector

Device = torch.device | str | int
CPU = torch.device("cpu")


def devices() -> tuple[str, ...]:
    """The devices that tensors can be loaded to here: `cpu`, then every accelerator that torch sees."""
    found = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        found += [f"{kind.type}:{index}" for index in range(torch.accelerator.device_count())] if kind else []
    return tuple(found)


@dataclass(frozen=True)
class Placement:
    """Devices by selector.

    >>> places = placement_of({"decoder": "meta"})
    >>> places.device_of("decoder.0.weight"), places.device_of("encoder.0.weight")
    (device(type='meta'), device(type='cpu'))

    Attributes:
        rows: selectors, each with its device; the first that chooses a name counts.
        rest: the device of what none of them chooses.
    """

    rows: tuple[tuple[Selector, torch.device], ...] = ()
    rest: torch.device = CPU

    def device_of(self, name: str, blocks: Sequence[str] = ()) -> torch.device:
        """The device of a parameter or buffer.

        Args:
            name: its dotted name.
            blocks: the top-level blocks of the model in order, for `first n` and `last n`.
        """
        return next((device for selector, device in self.rows if selector.matches(name, blocks)), self.rest)

    def resolved(
        self, names: Iterable[str], tied: Mapping[str, str] | None = None, blocks: Sequence[str] = ()
    ) -> dict[str, torch.device]:
        """The device of each name of a model.

        Args:
            names: of all its parameters and buffers.
            tied: name -> the first name of the same tensor.
            blocks: as for `device_of`.

        Raises:
            SelectorError: a selector chooses nothing of the model.
            LoadError: a tensor would go to one device under one of its names and to another under another.
        """
        listed = list(names)
        for selector, _ in self.rows:
            selector.check(listed, "device", "the model", blocks)
        found = {name: self.device_of(name, blocks) for name in listed}
        for name, first in (tied or {}).items():
            if found[name] != found[first]:
                raise LoadError(
                    f"{first!r} and {name!r} are one tensor, and would go to {found[first]} and {found[name]}",
                    hint="choose both for one device, or untie them in the model",
                )
        return found


def placement_of(device: Device | Mapping[Any, Device] | Placement | None) -> Placement:
    """What a caller says of devices, as a Placement.

    Args:
        device: one for all, the CPU if None; or a dict from selectors of names to devices, of which the first that
            chooses a name counts. What none chooses goes to the CPU; `"*"` as the last one says otherwise.

    Raises:
        LoadError: a device is not here, or is none.
    """
    if isinstance(device, Placement):
        return device
    if isinstance(device, Mapping):
        return Placement(tuple((Selector.of(selection), _here(one)) for selection, one in device.items()))
    return Placement(rest=CPU if device is None else _here(device))


def _here(device: Any) -> torch.device:
    """A device that exists, with its number where there are several of its kind."""
    try:
        return torch.empty(0, device=torch.device(device)).device
    except Exception as error:  # what torch raises differs from kind to kind
        raise LoadError(
            f"there is no device {str(device)!r} here: {str(error).partition(chr(10))[0]}",
            hint=f"tk.devices() are {', '.join(devices())}; files that were saved on others open all the same",
        ) from error
