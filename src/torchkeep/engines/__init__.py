"""How bytes get to and from a disk. One file per way; all of them move the same bytes."""
