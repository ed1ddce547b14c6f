"""Which measures are taken together?  `--suite=NAME` runs the file NAME of this folder."""
