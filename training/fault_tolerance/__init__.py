"""What keeps a broken job from wasting machines.

signals    a wish to stop, noted until a step has ended
lifeline   a rank ends when its launcher does
recovery   what is done about a step that is not as usual: use, log, skip, roll back, stop (pure)
corruption checks that hardware keeps and computes what it should
injected, poisoned    faults on request, for drills
last_words what a failing rank leaves behind for the person who reads it
"""
