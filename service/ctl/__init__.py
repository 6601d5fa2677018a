"""The operator's command line: `python -m service ctl`, a caller of the admin plane like any other."""
