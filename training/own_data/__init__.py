"""Data of a robot that brings no simulator: a spec drafted from a LeRobot data set, every fault found, then a run.

Nothing here writes into the data set. The packs and stages that follow know nothing of this package.
"""
