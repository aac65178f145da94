"""What keeps a broken job from wasting machines.

signals     a wish to stop, noted until a step has ended
lifeline    a rank ends when its launcher does
heartbeat   what a rank is doing, as its training thread says it
board       the table of all ranks in the job's store
watchdog    a rank that makes no progress: who is to blame (blame, pure), evidence, the end of the job
survey      rank 0's view: heartbeat.json, slow ranks (stragglers, pure)
jit_locks   locks that a killed process left
recovery    what is done about a step that is not as usual: use, log, skip, roll back, stop (pure)
corruption  checks that hardware keeps and computes what it should
last_words  what a failing rank leaves behind for the person who reads it
injected, poisoned    faults on request, for drills
"""
