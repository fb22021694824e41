"""A graph as a model: parameters under their names, and a forward that torch has recorded."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import GraphWarning


class GraphModel(nn.Module):
    """A model that computes what a graph says; its class is not needed.

    Its modules are bare: they hold parameters and buffers under the names they had, and the root alone computes. The
    modes are those of the export and stay so: `train()` and `eval()` change nothing, and the first that would have
    changed something says it in a GraphWarning. To train only a part, set `requires_grad`, as on any model.
    """

    _torchkeep_graph: tuple[nn.Module, str, str, dict[str, bool]]
    _torchkeep_said: bool

    def __init__(self, graph: nn.Module, title: str, mode: str, flags: Mapping[str, bool]) -> None:
        """Make it.

        Args:
            graph: the module of torch that computes; it shares all parameters and buffers.
            title: the file it comes from.
            mode: `train`, `eval` or `mixed`.
            flags: the training flags of the modules by path.
        """
        super().__init__()
        vars(self).update(
            _parameters=graph._parameters,
            _buffers=graph._buffers,
            _modules=graph._modules,
            _non_persistent_buffers_set=graph._non_persistent_buffers_set,
            _torchkeep_graph=(graph, title, mode, dict(flags)),
            _torchkeep_said=False,
        )
        for path, module in self.named_modules(remove_duplicate=False):
            module.training = flags.get(path, mode == "train")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the graph computes; takes what the model took that was exported."""
        return self._torchkeep_graph[0](*args, **kwargs)

    def train(self, mode: bool = True) -> GraphModel:
        """Change nothing, and say so once where that is not what is asked for."""
        _, title, exported, _ = self._torchkeep_graph
        if exported != ("train" if mode else "eval") and not self._torchkeep_said:
            self._torchkeep_said = True
            how = "with modules in either mode" if exported == "mixed" else f"in {exported} mode"
            warnings.warn(
                f"{title} is a graph that was exported {how}: {'train()' if mode else 'eval()'} changes nothing, "
                "dropout and normalisation stay as they were exported",
                GraphWarning,
                stacklevel=2 if mode else 3,
            )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            graph = copy.deepcopy(self._torchkeep_graph[0], memo)
        made = GraphModel(graph, *self._torchkeep_graph[1:])
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"the graph of {self._torchkeep_graph[1]} cannot be pickled: save it with torchkeep.save")


def computing(model: nn.Module) -> nn.Module:
    """The module of torch that computes in a GraphModel; any other model itself."""
    return model._torchkeep_graph[0] if isinstance(model, GraphModel) else model
