"""torchkeep looks after the parameters of PyTorch models through their whole life.

Open any checkpoint safely, load weights loudly, freeze for real, save only what changed, resume exactly.
"""

from __future__ import annotations

from . import adapters as adapters
from . import criteria as criteria
from . import edit as edit
from . import errors as errors
from . import surgery as surgery
from .advising import advise as advise
from .advising import apply as apply
from .advising import plan_of as plan_of
from .advising import read_plan as read_plan
from .advising import write_plan as write_plan
from .auditing import assert_frozen as assert_frozen
from .auditing import audit as audit
from .auditing import fingerprint as fingerprint
from .comparing import diff as diff
from .converting import convert as convert
from .core.about import About as About
from .core.about import Parent as Parent
from .core.advice import Advice as Advice
from .core.checkpoint import Checkpoint as Checkpoint
from .core.checkpoint import Finding as Finding
from .core.curves import Setting as Setting
from .core.diagnosis import VERDICTS as VERDICTS
from .core.diagnosis import Diagnosis as Diagnosis
from .core.diff_report import DiffReport as DiffReport
from .core.dropout_report import DropoutReport as DropoutReport
from .core.freezespec import FreezeSpec as FreezeSpec
from .core.freezespec import Phase as Phase
from .core.limits import Limits as Limits
from .core.names import Selector as Selector
from .core.origin import origins_of as origins
from .core.placement import devices as devices
from .core.report import ExportReport as ExportReport
from .core.report import SaveReport as SaveReport
from .core.retention import KeepBest as keep_best
from .core.retention import KeepEvery as keep_every
from .core.retention import KeepLast as keep_last
from .core.retention import KeepTagged as keep_tagged
from .core.similarity import Similarity as Similarity
from .core.source import Source as Source
from .core.survey import Survey as Survey
from .core.sweep_report import SweepReport as SweepReport
from .core.tensors import LazyTensor as LazyTensor
from .core.tensors import TensorSpec as TensorSpec
from .core.transfer import Candidate as Candidate
from .core.transfer import Examples as Examples
from .core.transfer import Recipe as Recipe
from .core.transfer import Signal as Signal
from .core.transfer import Stage as Stage
from .core.transfer_plan import TransferPlan as TransferPlan
from .core.tree import Global as Global
from .core.tree import Record as Record
from .core.version import __version__ as __version__
from .diagnosing import diagnose as diagnose
from .exporting import export as export
from .freezing import enter_phase as enter_phase
from .freezing import freeze as freeze
from .freezing import freeze_spec as freeze_spec
from .freezing import freeze_state as freeze_state
from .freezing import param_groups as param_groups
from .freezing import read_spec as read_spec
from .freezing import unfreeze as unfreeze
from .freezing import write_spec as write_spec
from .gathering import check_examples as check_examples
from .gathering import read_examples as read_examples
from .inspecting import inspect as inspect
from .lineage import about as about
from .loading import LoadReport as LoadReport
from .loading import load_into as load_into
from .loading import plan_load as plan_load
from .opening import load as load
from .opening import open_checkpoint as open
from .plotting import plot as plot
from .plotting import sketch as sketch
from .proving import prove_resume as prove_resume
from .reading import read_histories as read_histories
from .reading import read_history as read_history
from .rebuilding import Skeleton as Skeleton
from .rebuilding import load_model as load_model
from .rebuilding import plan_model as plan_model
from .recording import recorded as recorded
from .rescuing import rescue as rescue
from .rules.prefixes import Add as add
from .rules.prefixes import Strip as strip
from .rules.renames import Rename as rename
from .rules.structural import Structural as structural
from .running import Run as Run
from .running import SaveHandle as SaveHandle
from .running import is_run as is_run
from .running import local_store as local_store
from .salvaging import salvage as salvage
from .saving import save as save
from .scanning import scan as scan
from .sensing import similarity as similarity
from .showing import show as show
from .showing import to_json as to_json
from .sizing import can_overfit as can_overfit
from .sizing import capacity as capacity
from .stopping import EarlyStopping as EarlyStopping
from .stores.memory import MemoryStore as memory_store
from .surveying import survey as survey
from .sweeping import sweep as sweep
from .tuning import tune_dropout as tune_dropout
from .verifying import verify as verify

__all__ = [
    "VERDICTS",
    "About",
    "Advice",
    "Candidate",
    "Checkpoint",
    "Diagnosis",
    "DiffReport",
    "DropoutReport",
    "EarlyStopping",
    "Examples",
    "ExportReport",
    "Finding",
    "FreezeSpec",
    "Global",
    "LazyTensor",
    "Limits",
    "LoadReport",
    "Parent",
    "Phase",
    "Recipe",
    "Record",
    "Run",
    "SaveHandle",
    "SaveReport",
    "Selector",
    "Setting",
    "Signal",
    "Similarity",
    "Skeleton",
    "Source",
    "Stage",
    "Survey",
    "SweepReport",
    "TensorSpec",
    "TransferPlan",
    "__version__",
    "about",
    "adapters",
    "add",
    "advise",
    "apply",
    "assert_frozen",
    "audit",
    "can_overfit",
    "capacity",
    "check_examples",
    "convert",
    "criteria",
    "devices",
    "diagnose",
    "diff",
    "edit",
    "enter_phase",
    "errors",
    "export",
    "fingerprint",
    "freeze",
    "freeze_spec",
    "freeze_state",
    "inspect",
    "is_run",
    "keep_best",
    "keep_every",
    "keep_last",
    "keep_tagged",
    "load",
    "load_into",
    "load_model",
    "local_store",
    "memory_store",
    "open",
    "origins",
    "param_groups",
    "plan_load",
    "plan_model",
    "plan_of",
    "plot",
    "prove_resume",
    "read_examples",
    "read_histories",
    "read_history",
    "read_plan",
    "read_spec",
    "recorded",
    "rename",
    "rescue",
    "salvage",
    "save",
    "scan",
    "show",
    "similarity",
    "sketch",
    "strip",
    "structural",
    "surgery",
    "survey",
    "sweep",
    "to_json",
    "tune_dropout",
    "unfreeze",
    "verify",
    "write_plan",
    "write_spec",
]
