"""What the doctor looks for in curves. One check a file; its docstring is its message, figures are its evidence."""

CHECKS = {
    "too-few-points": "checks.too_few_points:TooFewPoints",
    "not-a-number": "checks.not_a_number:NotANumber",
    "diverged": "checks.diverged:Diverged",
    "low-signal": "checks.low_signal:LowSignal",
    "still-falling": "checks.still_falling:StillFalling",
    "plateau": "checks.plateau:Plateau",
    "rate-too-high": "checks.rate_too_high:RateTooHigh",
    "rate-too-low": "checks.rate_too_low:RateTooLow",
    "unusual-rate": "checks.unusual_rate:UnusualRate",
    "short-way": "checks.short_way:ShortWay",
    "few-parameters": "checks.few_parameters:FewParameters",
    "overfitting": "checks.overfitting:Overfitting",
    "over-confident": "checks.over_confident:OverConfident",
    "gap": "checks.gap:Gap",
    "poor-fit": "checks.poor_fit:PoorFit",
    "room-left": "checks.room_left:RoomLeft",
    "noisy-validation": "checks.noisy_validation:NoisyValidation",
    "small-validation": "checks.small_validation:SmallValidation",
    "validation-below-training": "checks.validation_below_training:ValidationBelowTraining",
    "best-epoch": "checks.best_epoch:BestEpoch",
}
