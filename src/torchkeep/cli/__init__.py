"""The command line: the library spoken aloud. It uses the public API and nothing else."""
