"""Which rank does what. No torch: the launcher and the planner import it.

layout     rank <-> (pipeline stage, data replica)
partition  decoder blocks -> pipeline stages
"""
