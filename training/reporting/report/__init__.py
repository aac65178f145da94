"""The report of a run: one HTML page that needs no network, the same page live, and several runs compared.

page            puts it together: report.html, and the content that the server hands out
headline        what is trained, where, how far it is, how long it took, what it cost
attention       what somebody who is called at night must see first
ahead           steps to come, and the loss expected at the training stage's end
steps, curves   step records as columns, and their curves
marks           training stages, gates and incidents on curves
scores          evaluations: held-out text, and scores with their intervals
heat_maps       layers over steps, experts of each block
memory          memory of the ranks beside the plan
time_lost       the goodput ledger as bars and as rows; device-hours and their price
samples         texts before and after each training stage
traces          files of the profiler, and which of them may be offered
text_summary    ten lines for a terminal
live, server    the same page over HTTP on this machine while the run goes on (`--serve`)
comparison, comparison_page   several runs in one page
"""
