"""The tasks: each file here is one, named like the task with "_" for "-". registry.py finds and describes them."""
