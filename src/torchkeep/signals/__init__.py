"""How similarity is measured, one signal a file: what a pretrained model sees in new data that fresh weights do not."""

from __future__ import annotations

SIGNALS = {
    "zero-shot": "signals.zero_shot:ZeroShot",
    "old-answers": "signals.old_answers:OldAnswers",
    "linear-probe": "signals.linear_probe:LinearProbe",
    "knn": "signals.knn:NearestNeighbours",
    "probe-depth": "signals.probe_depth:ProbeDepth",
    "batch-norm": "signals.batch_norm:BatchNormShift",
    "logme": "signals.logme:LogME",
}
