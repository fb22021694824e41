"""Which optimizer a saved state is of, as far as the options in its groups tell."""

from __future__ import annotations

from typing import Any

from ..core.tree import Record

# Options that only this class of torch.optim has, the most telling first.
_TELLING: tuple[tuple[frozenset[str], str], ...] = tuple(
    (frozenset(keys.split()), name)
    for keys, name in (
        ("max_iter history_size", "LBFGS"),
        ("betas momentum_decay", "NAdam"),
        ("rho eps", "Adadelta"),
        ("etas step_sizes", "Rprop"),
        ("lambd alpha t0", "ASGD"),
        ("alpha centered", "RMSprop"),
        ("lr_decay", "Adagrad"),
        ("beta2_decay d", "Adafactor"),
        ("ns_steps momentum", "Muon"),
        ("momentum dampening nesterov", "SGD"),
        ("betas eps amsgrad", "Adam or AdamW"),
        ("betas eps weight_decay", "Adamax, RAdam or another of Adam's family"),
    )
)


def optimizer_of(tree: Any) -> str:
    """The class of the optimizer whose state a saved object holds, or an empty string; a guess by its options.

    A pickled optimizer says its class itself. Looked at are the object, its members, and lists and dicts of those.
    """
    candidates = [tree, *(tree.values() if isinstance(tree, dict) else ())]
    for node in list(candidates):
        if isinstance(node, (list, tuple)):
            candidates += node[:8]
        elif isinstance(node, dict):
            candidates += [child for child in list(node.values())[:8] if isinstance(child, dict)]
    for node in candidates:
        found = _named(node)
        if found:
            return found
    return ""


def _named(node: Any) -> str:
    if isinstance(node, Record):
        state = node.state
        said = isinstance(state, dict) and {"state", "param_groups"} <= state.keys()
        return node.class_name.rpartition(".")[2] if said else ""
    groups = node.get("param_groups") if isinstance(node, dict) and "state" in node else None
    if not isinstance(groups, list) or not groups or not isinstance(groups[0], dict):
        return ""
    options = groups[0]
    decoupled = options.get("decoupled_weight_decay")
    if isinstance(decoupled, bool) and "amsgrad" in options:
        return "AdamW" if decoupled else "Adam"
    return next((name for keys, name in _TELLING if keys <= options.keys()), "")
