"""Which name of a checkpoint goes to which name of a model. One rule a file; each is asked in turn."""

RULES = {
    "exact": "rules.exact:Exact",
    "prefixes": "rules.prefixes:Prefixes",
    "suffix": "rules.suffix:Suffix",
    "weight-norm": "rules.weight_norm:WeightNorm",
    "structural": "rules.structural:Structural",
}

DEFAULT_RULES = ("exact", "prefixes", "weight-norm")
