"""What is measured together?  `--suite=NAME` is the file NAME of this folder."""
