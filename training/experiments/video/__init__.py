"""The four experiments on priors from video (paper B, arXiv 2606.18955): what is asked, its jobs, figures and report.

Owns what differs from paper A's experiments beside it: arms that are codes or policies from video, jobs whose parts are
shared, and figures read from codes. Statistics, evaluation and the order of work are those of training/experiments/.
"""
