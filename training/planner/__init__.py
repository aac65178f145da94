"""What a run will take, before it is started: memory, step time, goodput, price. No torch.

job                 a training stage as numbers, whoever runs it
operators           what one rank computes: matrix products, attention, bytes moved
roofline, network   operator and collective -> seconds
efficiency, software, constants
                    shares of data sheets, profiles of programs; all of them in one value
block_time, pipeline_time, replica_exchange, step_time
                    a block, the schedule, the replicas, and the whole step
memory              bytes of a rank, and whether they fit: own_memory for our engines, program_memory for others
flops, traffic      FLOPs by named conventions, bytes sent by axis
published*          published runs as jobs, their split into calibration and left out
fit, validation     python -m: constants from published runs; planned against published (docs/planner_validation.md)
layouts, search     all legal layouts of a model, ranked
goodput*, checkpoint_*, reliability, price, inference_price
                    failures, finish date, price
run_plan, calibration, from_config, this_machine
                    the plan of a configured run, and its correction by measured ones
"""
