"""Saving and loading on one disk, beside the peers and the limits of the machine."""
