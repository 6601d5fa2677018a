"""The experiments on priors from video, a module each; catalogue.py has them by name."""
