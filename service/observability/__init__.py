"""What people and monitors are told of the traffic: the last hour in memory, metrics of the fleet, traces.

Imports no model code. Nothing here keeps a request waiting, and nothing holds what a robot saw or was told.
"""
