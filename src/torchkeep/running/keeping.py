"""What stays of a run: tags, pruning and collecting, as methods of `Run`."""

from __future__ import annotations

from ..core.retention import Policy
from ..core.retention_report import GarbageReport, PruneReport
from ..core.snapshot import Snapshot
from ..core.units import parse_seconds
from ..errors import KeyNotFoundError, LoadError, TorchkeepError
from .archive import MARKER, Archive
from .looking import Looking
from .retention import GRACE, collect, flush, prune
from .tags import TAGS, read_tags, tag_key, write_tag


def checked_policy(policy: Policy) -> Policy:
    """The same; raises TypeError for what is none."""
    if not isinstance(policy, Policy):
        raise TypeError(f"{policy!r} is no policy; say what stays, as in tk.keep_last(3) | tk.keep_best(1, 'val_loss')")
    return policy


class Keeping(Looking):
    """The part of `Run` that needs no writer's lock: other processes may save and read meanwhile."""

    _keep: Policy | None = None

    def tag(self, name: str, snapshot: int | Snapshot | None = None) -> int:
        """Give a snapshot a name; one that exists moves. `keep_tagged()` keeps what has one.

        Args:
            name: letters, digits, `-`, `_` and `.`; not `best`, which is the run's own.
            snapshot: a snapshot or its sequence number; the newest if None.

        Returns:
            The sequence number.

        Raises:
            LoadError: there is no such snapshot, or it is damaged.
        """
        tag_key(name)
        wanted = snapshot.sequence if isinstance(snapshot, Snapshot) else snapshot
        self._check_run()
        with self._archive.guarded(exclusive=False):  # no prune drops it meanwhile
            found = [one.sequence for one in self._archive.snapshots() if wanted in {None, one.sequence}]
            if not found:
                raise LoadError(
                    f"{self.path} has no intact snapshot {wanted or ''}".rstrip(), hint="`torchkeep runs` lists them"
                )
            write_tag(self._store, name, found[-1])
        return found[-1]

    def untag(self, name: str) -> None:
        """Take a name away. The snapshot stays.

        Raises:
            KeyNotFoundError: there is no such tag.
        """
        key = tag_key(name)
        self._settle()
        with self._archive.guarded(exclusive=False):
            tags, damaged = read_tags(self._store)
            if name not in tags and name not in damaged:
                raise KeyNotFoundError(
                    f"{self.path} has no tag {name!r}", hint=f"there are: {', '.join(sorted(tags)) or 'none'}"
                )
            self._store.delete(key)
            flush(self._store, TAGS)

    def prune(self, policy: Policy, *, dry_run: bool = False, damaged: bool = False) -> PruneReport:
        """Drop the snapshots that a policy does not keep. `gc` frees the bytes that only they needed.

        >>> run.prune(tk.keep_last(3) | tk.keep_best(1, "val_loss"), dry_run=True)      # doctest: +SKIP

        The newest intact snapshot stays whatever the policy says, and so does the highest number, for numbers are
        never used twice. Intact means here that manifest and packs are there; `tk.verify` reads every byte.

        Args:
            policy: made of `tk.keep_last`, `tk.keep_every`, `tk.keep_best` and `tk.keep_tagged`, joined by `|`.
            dry_run: change nothing, only say what would go.
            damaged: drop damaged snapshots and tags too; else they are left alone.

        Raises:
            SelectorError: the policy looks at a metric that no snapshot has.
            CorruptCheckpointError: a tag is damaged, so that nobody knows what it keeps.
        """
        checked_policy(policy)
        self._check_run()
        return prune(
            self._archive, self._store, policy, path=str(self.path), best=self.best, dry_run=dry_run, damaged=damaged
        )

    def gc(self, *, grace: float | str = GRACE, dry_run: bool = False) -> GarbageReport:
        """Remove the packs that no snapshot needs, and what a crash left unfinished.

        Args:
            grace: leave files that are younger, in seconds, or as `1h`. Processes that save into a local folder are
                waited for, so there 0 is safe too; a store without a guard relies on this time alone.
            dry_run: change nothing, only say what would go.

        Raises:
            CorruptCheckpointError: a manifest is damaged, so that nobody knows which packs it needs.
        """
        seconds = parse_seconds(grace)
        self._check_run()
        fresh = Archive(self._store)  # every manifest is read anew: what is deleted here must not rest on memory
        return collect(fresh, self._store, path=str(self.path), grace=seconds, dry_run=dry_run)

    def _let_go(self) -> tuple[str, ...]:
        """Apply `keep=` after a save; what goes wrong is a note, for the snapshot is committed."""
        if self._keep is None:
            return ()
        try:
            policy = self._policy(self._keep)
            pruned = prune(self._archive, self._store, policy, path=str(self.path), strict=False)
            if pruned.removed:
                collect(self._archive, self._store, path=str(self.path), at_once=pruned.packs)
        except TorchkeepError as error:
            return (f"the snapshot is committed, but older ones or their packs could not be removed: {error.brief}",)
        return ()

    def _policy(self, keep: Policy) -> Policy:
        """What stays after a save."""
        return keep

    def _check_run(self) -> None:
        self._settle()
        try:
            self._store.source(MARKER)
        except KeyNotFoundError:
            raise LoadError(
                f"{self.path} is no run: it has no {MARKER}", hint="give the folder that tk.Run was given"
            ) from None
