"""Which name of a checkpoint goes to which name of a model. One rule a file; each is asked in turn."""

RULES = {
    "exact": "rules.exact:Exact",
    "prefixes": "rules.prefixes:Prefixes",
}

DEFAULT_RULES = ("exact", "prefixes")
