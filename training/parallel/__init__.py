"""Which rank does what, and when. No torch: the launcher and the planner import it.

layout     rank <-> (pipeline stage, data replica)
partition  decoder blocks -> pipeline stages
schedule   pipeline schedules as tables, and what makes a table sound
simulate   schedule and costs -> timeline, bubble, diagram
program    schedule -> what each rank executes: computations and transfers that cannot deadlock

python -m training.parallel shows a schedule.
"""
